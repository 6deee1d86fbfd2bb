// Runs one threadgroup: every lane up to its next SIMD function or barrier, in the order the schedule asks for, and
// refuses lanes or threads that do not meet at the same one.
#include "internal.h"

#include <cstdio>
#include <cstring>

namespace emu {

Triple grid, full_group, group_size, group_count;
static Thread threads[MAX_THREADS];
static Simdgroup simdgroups[MAX_THREADS / 32];
static char* stacks;
static uint64_t random_state;

void use_stacks(char* memory) {
  stacks = memory;
  random_state = 12345;
}

// ---- what a kernel calls

const void* exchange(Site site, const char* operation, const void* value, size_t size) {
  Thread* me = current;
  char* values = me->simdgroup->values[me->exchanges++ & 1];
  memcpy(values + me->lane * size, value, size);
  me->operation = operation;
  me->site = site;
  me->flags = 0;
  me->state = Thread::AT_SIMD_FUNCTION;
  yield();
  return values;
}

void simdgroup_wait(Site site, int flags) {
  current->operation = "simdgroup_barrier";
  current->site = site;
  current->flags = flags;
  current->state = Thread::AT_SIMD_FUNCTION;
  yield();
}

void threadgroup_wait(Site site, int flags) {
  current->operation = "threadgroup_barrier";
  current->site = site;
  current->flags = flags;
  current->state = Thread::AT_BARRIER;
  yield();
}

// ---- divergence

static bool meet(const Thread& a, const Thread& b) {
  if (a.state != b.state) return false;
  if (a.state == Thread::ENDED) return true;
  return a.operation == b.operation && a.flags == b.flags && a.site.line == b.site.line &&
         a.site.column == b.site.column && !strcmp(a.site.file, b.site.file);
}

static void describe(char* text, size_t size, const Thread& t) {
  if (t.state == Thread::ENDED) {
    snprintf(text, size, "thread %u of it has ended", t.index);
  } else {
    snprintf(text, size, "thread %u of it waits at %s (%s line %d)", t.index, t.operation, t.site.file, t.site.line);
  }
}

static void must_meet(const char* what, Thread& a, Thread& b) {
  if (meet(a, b)) return;
  char one[128], other[128];
  describe(one, sizeof one, a);
  describe(other, sizeof other, b);
  fail(nullptr, "%s in threadgroup (%u, %u, %u): %s while %s", what, a.group.x, a.group.y, a.group.z, one, other);
}

// ---- the order of things

// The k-th of n in turn; `offset` is where a rotated schedule starts.
static unsigned in_turn(Schedule schedule, unsigned k, unsigned n, unsigned offset) {
  if (schedule == REVERSE) return n - 1 - k;
  return schedule == ROTATED ? (k + offset) % n : k;
}

static unsigned next_random() {
  random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
  return random_state >> 33;
}

// Until every lane is at a threadgroup barrier or has ended.
static void run_simdgroup(unsigned index, Schedule schedule, unsigned offset) {
  Thread* lanes = &threads[index * 32];
  Simdgroup& simdgroup = simdgroups[index];
  for (;;) {
    for (unsigned k = 0; k < simdgroup.lanes; k++) {
      Thread* lane = &lanes[in_turn(schedule, k, simdgroup.lanes, offset)];
      if (lane->state == Thread::RUNNING) resume(lane);
    }
    for (unsigned k = 1; k < simdgroup.lanes; k++) must_meet("divergence in a simdgroup", lanes[0], lanes[k]);
    if (lanes[0].state != Thread::AT_SIMD_FUNCTION) return;
    if (lanes[0].flags & MEM_THREADGROUP) simdgroup.epoch[THREADGROUP]++;
    if (lanes[0].flags & MEM_DEVICE) simdgroup.epoch[DEVICE]++;
    for (unsigned k = 0; k < simdgroup.lanes; k++) lanes[k].state = Thread::RUNNING;
  }
}

static void start_threads(Triple group, unsigned count, void (*entry)()) {
  for (unsigned first = 0; first < count; first += 32) {
    simdgroups[first / 32].lanes = count - first < 32 ? count - first : 32;
  }
  for (unsigned i = 0; i < count; i++) {
    Thread& t = threads[i];
    t = {};
    t.index = i;
    t.lane = i % 32;
    t.simdgroup_index = i / 32;
    t.simdgroup = &simdgroups[i / 32];
    t.group = group;
    t.position_in_group = {i % group_size.x, i / group_size.x % group_size.y, i / (group_size.x * group_size.y)};
    t.position_in_grid = {group.x * full_group.x + t.position_in_group.x,
                          group.y * full_group.y + t.position_in_group.y,
                          group.z * full_group.z + t.position_in_group.z};
    t.stack = stacks + i * STACK_BYTES;
    prepare_fiber(&t, entry);
  }
}

void run_threadgroup(Triple group, Schedule schedule, void (*entry)()) {
  const unsigned count = group_size.product(), simdgroup_count = (count + 31) / 32;
  start_threadgroup_memory();
  start_threads(group, count, entry);
  for (;;) {
    const unsigned offset = schedule == ROTATED ? next_random() : 0;
    for (unsigned k = 0; k < simdgroup_count; k++) {
      run_simdgroup(in_turn(schedule, k, simdgroup_count, offset % simdgroup_count), schedule, offset % 32);
    }
    for (unsigned i = 1; i < count; i++) must_meet("barrier divergence", threads[0], threads[i]);
    if (threads[0].state == Thread::ENDED) return;
    if (threads[0].flags & MEM_THREADGROUP) begin_epoch(THREADGROUP);
    if (threads[0].flags & MEM_DEVICE) begin_epoch(DEVICE);
    for (unsigned i = 0; i < count; i++) threads[i].state = Thread::RUNNING;
  }
}

}  // namespace emu
