// One fiber per Metal thread: a stack and a place to go on.
#include "internal.h"

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emu {

Thread* current;
static void (*kernel_entry)();

#ifdef __x86_64__
// Written out because swapcontext makes a system call at every switch. Saves what a called function must preserve.
extern "C" void emulator_switch(void** save, void* load);
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch,@function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch,.-emulator_switch
)");

static void* stack_pointers[MAX_THREADS];
static void* scheduler_stack;

static void start() {
  kernel_entry();
  current->state = Thread::ENDED;
  emulator_switch(&stack_pointers[current->index], scheduler_stack);
  __builtin_unreachable();
}

void prepare_fiber(Thread* thread, void (*entry)()) {
  kernel_entry = entry;
  void** top = reinterpret_cast<void**>(thread->stack + STACK_BYTES - 64);
  *--top = nullptr;  // start() has no caller; this also leaves the stack aligned as after a call
  *--top = reinterpret_cast<void*>(start);
  for (int saved = 0; saved < 6; saved++) *--top = nullptr;
  stack_pointers[thread->index] = top;
}

void resume(Thread* thread) {
  current = thread;
  emulator_switch(&scheduler_stack, stack_pointers[thread->index]);
  current = nullptr;
}

void yield() { emulator_switch(&stack_pointers[current->index], scheduler_stack); }

#else
static ucontext_t contexts[MAX_THREADS], scheduler_context;

static void start() {
  kernel_entry();
  current->state = Thread::ENDED;
  swapcontext(&contexts[current->index], &scheduler_context);
}

void prepare_fiber(Thread* thread, void (*entry)()) {
  kernel_entry = entry;
  ucontext_t* context = &contexts[thread->index];
  getcontext(context);
  context->uc_stack.ss_sp = thread->stack;
  context->uc_stack.ss_size = STACK_BYTES;
  context->uc_link = nullptr;
  makecontext(context, start, 0);
}

void resume(Thread* thread) {
  current = thread;
  swapcontext(&scheduler_context, &contexts[thread->index]);
  current = nullptr;
}

void yield() { swapcontext(&contexts[current->index], &scheduler_context); }
#endif

}  // namespace emu
