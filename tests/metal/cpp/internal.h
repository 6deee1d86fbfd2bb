// Shared by the files of the runtime; kernels never see it.
#pragma once
#include "runtime.h"

#include <csetjmp>

extern "C" const int emulator_checked;  // the kernel's file says how it is compiled

namespace emu {

const unsigned MAX_THREADS = 1024;       // per threadgroup, Metal's limit
const size_t STACK_BYTES = 256 << 10;    // per thread
const size_t THREADGROUP_LIMIT = 32768;  // bytes, Apple's limit

// mem_flags as bits
const int MEM_DEVICE = 1, MEM_THREADGROUP = 2;

enum Schedule { FORWARD, REVERSE, ROTATED };

// ---- the contract with the Python side (build.py declares the same structures)
struct Buffer {
  char* data;           // the host's bytes: copied in, and for an output copied back
  size_t bytes;
  size_t origin;        // where the kernel's pointer points, in bytes (negative strides start in the middle)
  size_t element;       // bytes per element
  int is_output;
  int is_initialised;   // an output that MLX fills with init_value
  const char* name;
};
struct Report {
  char message[2048];   // empty when all went well
  size_t address;       // of the faulting instruction within the library, 0 when unknown
  size_t device_accesses, threadgroup_accesses;  // how many were checked
  size_t threadgroup_bytes;
};

extern Report* report;
extern sigjmp_buf failed;

// ---- fibers.cpp
void prepare_fiber(Thread* thread, void (*entry)());
void resume(Thread* thread);
void yield();

// ---- scheduler.cpp
void use_stacks(char* memory);
void run_threadgroup(Triple group, Schedule schedule, void (*entry)());

// ---- memory.cpp
enum Kind { READ, WRITE, ATOMIC_LOAD, ATOMIC_STORE, ATOMIC_UPDATE };
void access(const char* address, size_t bytes, Kind kind, const void* caller);  // checks it; returns if it is allowed
void map_buffers(const Buffer* buffers, int count, char** pointers);
void copy_back(const Buffer* buffers);
void unmap_buffers();
void start_threadgroup_memory();
void begin_epoch(Space space);
void check_all_written();
const char* nearest_buffer(const char* address, long* offset, size_t* bytes);

}  // namespace emu
