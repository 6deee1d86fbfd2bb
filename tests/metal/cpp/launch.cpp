// One launch of the kernel that this library holds: the grid's threadgroups, faults caught, one line of report.
#include "internal.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <ucontext.h>

#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

// The generated file defines these.
extern "C" void emulator_bind(char** pointers);
extern "C" void emulator_thread();
extern "C" char __ehdr_start __attribute__((visibility("hidden")));

namespace emu {

Report* report;
sigjmp_buf failed;

static void append_thread(char* text, size_t size) {
  if (!current) return;
  const Triple t = current->position_in_group, g = current->group;
  snprintf(text, size, "; thread (%u, %u, %u) of threadgroup (%u, %u, %u)", t.x, t.y, t.z, g.x, g.y, g.z);
}

void fail(const void* caller, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const int length = vsnprintf(report->message, 1500, format, arguments);
  va_end(arguments);
  append_thread(report->message + length, 500);
  // A call's return address is the next instruction; one byte before lies within the call.
  report->address = caller ? static_cast<const char*>(caller) - &__ehdr_start - 1 : 0;
  siglongjmp(failed, 1);
}

// ---- signals, which is all that the fast mode has

static pthread_t launcher;

static const void* instruction(void* context) {
#if defined(__x86_64__)
  return reinterpret_cast<void*>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP] + 1);
#elif defined(__aarch64__)
  return reinterpret_cast<void*>(static_cast<ucontext_t*>(context)->uc_mcontext.pc + 1);
#else
  return nullptr;
#endif
}

static void on_signal(int signal, siginfo_t* info, void* context) {
  if (!pthread_equal(pthread_self(), launcher)) {  // the timer may interrupt any thread of the process
    pthread_kill(launcher, signal);
    return;
  }
  if (signal == SIGVTALRM) {
    if (current) fail(instruction(context), "the kernel does not end");
    return;  // between two threads: the timer comes again
  }
  if (!current) {  // not the kernel's fault: as if we were not here
    struct sigaction usual {};
    usual.sa_handler = SIG_DFL;
    sigaction(signal, &usual, nullptr);
    return;
  }
  if (signal == SIGFPE) fail(instruction(context), "division by zero or overflow of an integer division");
  long offset;
  size_t bytes;
  const char* name = nearest_buffer(static_cast<char*>(info->si_addr), &offset, &bytes);
  fail(instruction(context), "memory fault; the nearest buffer is %s, at byte %ld, which has %zu",
       name ? name : "none", offset, bytes);
}

static const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGVTALRM};

struct Handlers {
  struct sigaction previous[4];
  stack_t previous_stack;
  alignas(16) char stack[64 << 10];  // a fault may be a thread's stack that ran over

  void install(int seconds) {
    launcher = pthread_self();
    stack_t mine{};
    mine.ss_sp = stack;
    mine.ss_size = sizeof stack;
    sigaltstack(&mine, &previous_stack);
    struct sigaction action {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &action, &previous[i]);
    const itimerval limit{{1, 0}, {seconds, 0}};
    setitimer(ITIMER_VIRTUAL, &limit, nullptr);
  }
  void remove() {
    const itimerval none{};
    setitimer(ITIMER_VIRTUAL, &none, nullptr);
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &previous[i], nullptr);
    sigaltstack(&previous_stack, nullptr);
  }
};
static Handlers handlers;

// ---- the grid

static unsigned ceil_divide(unsigned a, unsigned b) { return (a + b - 1) / b; }

static unsigned within(unsigned total, unsigned index, unsigned size) {
  return total - index * size < size ? total - index * size : size;
}

static void run_grid(Triple threads, Triple group, Schedule schedule, bool round_up) {
  auto least = [](unsigned a, unsigned b) { return a < b ? a : b; };
  grid = threads;
  full_group = {least(group.x, grid.x), least(group.y, grid.y), least(group.z, grid.z)};  // as MLX does
  if (!full_group.product()) fail(nullptr, "an empty grid or threadgroup");
  if (full_group.product() > MAX_THREADS) {
    fail(nullptr, "%u threads in a threadgroup, the limit is %u", full_group.product(), MAX_THREADS);
  }
  group_count = {ceil_divide(grid.x, full_group.x), ceil_divide(grid.y, full_group.y),
                 ceil_divide(grid.z, full_group.z)};
  const unsigned count = group_count.product();
  for (unsigned k = 0; k < count; k++) {
    const unsigned i = schedule == REVERSE ? count - 1 - k : k;
    const Triple g{i % group_count.x, i / group_count.x % group_count.y, i / (group_count.x * group_count.y)};
    group_size = full_group;
    if (!round_up) {
      group_size = {within(grid.x, g.x, full_group.x), within(grid.y, g.y, full_group.y),
                    within(grid.z, g.z, full_group.z)};
    }
    run_threadgroup(g, schedule, emulator_thread);
  }
}

}  // namespace emu

using namespace emu;

// Returns 0, or 1 with report->message set. The buffers are in the order of the kernel's parameters, at most 64.
extern "C" int emulator_launch(const Buffer* buffers, int count, const unsigned* threads, const unsigned* group,
                               int schedule, int round_up, int seconds, Report* result) {
  static char* pointers[64];
  const size_t stack_bytes = STACK_BYTES * MAX_THREADS;
  report = result;
  void* stacks = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  use_stacks(static_cast<char*>(stacks));
  handlers.install(seconds);
  const int error = sigsetjmp(failed, 1);
  if (!error) {
    map_buffers(buffers, count, pointers);
    emulator_bind(pointers);
    run_grid({threads[0], threads[1], threads[2]}, {group[0], group[1], group[2]}, Schedule(schedule), round_up);
    if (emulator_checked) check_all_written();
    copy_back(buffers);
  }
  current = nullptr;
  handlers.remove();
  unmap_buffers();
  munmap(stacks, stack_bytes);
  return error;
}
