// Buffers between guard pages, and what the checked mode knows about every element: who wrote it, who read it, and
// which barriers have passed since.
#include "internal.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <vector>

// The linker defines these: the kernel's threadgroup variables (section tgmem, absent without any) and this library.
extern "C" {
extern char __start_tgmem[] __attribute__((weak, visibility("hidden")));
extern char __stop_tgmem[] __attribute__((weak, visibility("hidden")));
extern char __ehdr_start __attribute__((visibility("hidden")));
extern char _end __attribute__((visibility("hidden")));
}

namespace emu {

// Epochs order accesses. Two accesses by different threads are ordered only when a threadgroup barrier on that memory
// lies between (another epoch), or both threads are of one simdgroup and a simdgroup barrier does (another simd_epoch).
// Epochs never restart, so those before `group_start` belong to earlier threadgroups.
struct Clock {
  uint32_t epoch = 1, group_start = 1;
};
static Clock clocks[SPACES];

// Who: 0 nobody, thread index + 1, several lanes of one simdgroup, or threads of several simdgroups or threadgroups.
const uint32_t LANES_OF = 0x10000, MANY = 0x20000;
// In Access::who of a write: memory between the threadgroup variables.
const uint32_t NO_VARIABLE = 0x40000;

struct Access {
  uint32_t who, epoch, simd_epoch;
};
struct Shadow {
  Access write, read, atomic;
};

struct Region {
  char *begin, *end;
  size_t element;
  bool writable, initialised;
  const char* name;
  std::vector<Shadow> shadow;
};

static std::vector<Region> regions;
static Region threadgroup_memory;

struct Variable {
  const char* begin;
  size_t bytes;
  const char* name;
};
static std::vector<Variable> variables;  // of the threadgroup
static char *arena, *arena_end;

// ---- happens-before

static uint32_t simdgroup_of(uint32_t who) { return who & LANES_OF ? who & 0xffff : (who - 1) / 32; }

static Access now(Space space) {
  return {current->index + 1, clocks[space].epoch, current->simdgroup->epoch[space]};
}

static bool concurrent(const Access& before, Space space) {
  const Clock& clock = clocks[space];
  if (!before.who) return false;
  if (before.epoch < clock.group_start) return true;
  if (before.epoch != clock.epoch || before.who == current->index + 1) return false;
  if (before.who == MANY) return true;
  const bool same_simdgroup = simdgroup_of(before.who) == current->simdgroup_index;
  return !(same_simdgroup && before.simd_epoch != current->simdgroup->epoch[space]);
}

// Adds the current thread to those who have read (or atomically changed) an element.
static void join(Access& readers, Space space) {
  const Access me = now(space);
  if (!readers.who) {
    readers = me;
  } else if (readers.epoch < clocks[space].group_start) {
    readers = {MANY, 0, 0};  // two threadgroups: nothing orders them any more
  } else if (readers.epoch != me.epoch || readers.who == me.who) {
    readers = me;
  } else if (readers.who != MANY && simdgroup_of(readers.who) == current->simdgroup_index) {
    const bool since_barrier = readers.simd_epoch == me.simd_epoch;
    readers = {since_barrier ? LANES_OF | current->simdgroup_index : me.who, me.epoch, me.simd_epoch};
  } else {
    readers = {MANY, me.epoch, me.simd_epoch};
  }
}

void begin_epoch(Space space) { clocks[space].epoch++; }

// ---- one access to one element

// "byte 8 of threadgroup memory b", by the nearest variable.
struct Place {
  char text[160];
  Place(const Region& region, const char* p) {
    const Variable* nearest = nullptr;
    for (const Variable& v : variables) {
      if (&region == &threadgroup_memory && (!nearest || distance(p, v) < distance(p, *nearest))) nearest = &v;
    }
    if (nearest) {
      snprintf(text, sizeof text, "byte %ld of threadgroup memory %s", long(p - nearest->begin), nearest->name);
    } else {
      snprintf(text, sizeof text, "byte %ld of %s", long(p - region.begin), region.name);
    }
  }
  static long distance(const char* p, const Variable& v) {
    return p < v.begin ? v.begin - p : p < v.begin + v.bytes ? 0 : p - v.begin - v.bytes + 1;
  }
};

static void race(const char* what, const Place& place, const Access& other, Space space, const void* caller) {
  char whom[64] = "other threads";
  if (space == DEVICE && other.epoch < clocks[space].group_start) {
    snprintf(whom, sizeof whom, "another threadgroup");
  } else if (other.who < LANES_OF) {
    snprintf(whom, sizeof whom, "thread %u of the threadgroup", other.who - 1);
  }
  fail(caller, "race: %s %s by %s, with no barrier between", place.text, what, whom);
}

static void touch(Region& region, size_t i, Kind kind, Space space, const void* caller) {
  Shadow& s = region.shadow[i];
  const char* p = region.begin + i * region.element;
  const bool atomic = kind >= ATOMIC_LOAD;
  const bool reads = kind != WRITE && kind != ATOMIC_STORE, writes = kind != READ && kind != ATOMIC_LOAD;
  if (s.write.who == NO_VARIABLE) fail(caller, "out of bounds access: %s", Place(region, p).text);
  if (reads && !region.initialised && !s.write.who && !s.atomic.who) {
    fail(caller, "read of uninitialised memory: %s has not been written", Place(region, p).text);
  }
  if (concurrent(s.write, space)) {
    race(writes ? "is written, and was written" : "is read, and was written", Place(region, p), s.write, space, caller);
  }
  if (writes && concurrent(s.read, space)) race("is written, and was read", Place(region, p), s.read, space, caller);
  if (!atomic && concurrent(s.atomic, space)) {
    race("is used, and was changed atomically", Place(region, p), s.atomic, space, caller);
  }
  // An atomic load counts as a change: beside atomic additions it is legal, and only beside plain accesses it matters.
  if (atomic) join(s.atomic, space);
  else if (kind == WRITE) s.write = now(space);
  else join(s.read, space);
}

static void touch_all(Region& region, const char* p, size_t bytes, Kind kind, Space space, const void* caller) {
  (space == DEVICE ? report->device_accesses : report->threadgroup_accesses)++;
  const size_t first = (p - region.begin) / region.element, last = (p + bytes - 1 - region.begin) / region.element;
  for (size_t i = first; i <= last; i++) touch(region, i, kind, space, caller);
}

// ---- one access, wherever it goes

const char* nearest_buffer(const char* address, long* offset, size_t* bytes) {
  const Region* best = nullptr;
  long least = 0;
  for (const Region& r : regions) {
    const long distance = address < r.begin ? r.begin - address : address >= r.end ? address - r.end : 0;
    if (!best || distance < least) best = &r, least = distance;
  }
  *offset = best ? address - best->begin : 0;
  *bytes = best ? best->end - best->begin : 0;
  return best ? best->name : nullptr;
}

static void device_access(const char* p, size_t bytes, Kind kind, const void* caller) {
  for (Region& r : regions) {
    if (p < r.begin || p + bytes > r.end) continue;
    const bool writes = kind != READ && kind != ATOMIC_LOAD;
    if (writes && !r.writable) fail(caller, "write to an input: byte %ld of %s", long(p - r.begin), r.name);
    if (r.writable) touch_all(r, p, bytes, kind, DEVICE, caller);
    else report->device_accesses++;
    return;
  }
  long offset;
  size_t size;
  const char* name = nearest_buffer(p, &offset, &size);
  fail(caller, "out of bounds %s of %zu bytes at byte %ld of %s, which has %zu", kind == READ ? "read" : "write", bytes,
       offset, name, size);
}

void access(const char* p, size_t bytes, Kind kind, const void* caller) {
  if (!current) return;
  if (p >= current->stack && p + bytes <= current->stack + STACK_BYTES) return;
  if (p >= arena && p < arena_end) return device_access(p, bytes, kind, caller);
  if (p >= threadgroup_memory.begin && p < threadgroup_memory.end) {
    if (p + bytes > threadgroup_memory.end) fail(caller, "out of bounds access: past the end of threadgroup memory");
    return touch_all(threadgroup_memory, p, bytes, kind, THREADGROUP, caller);
  }
  if (p >= &__ehdr_start && p < &_end && kind == READ) return;  // constants
  fail(caller, "out of bounds %s: the address lies in no buffer", kind == READ ? "read" : "write");
}

// ---- mapping

static const size_t GAP = 1 << 20;  // unmapped, so that a stray index faults also in the fast mode

void map_buffers(const Buffer* buffers, int count, char** pointers) {
  const size_t page = sysconf(_SC_PAGESIZE);
  auto whole_pages = [page](size_t bytes) { return bytes ? (bytes + page - 1) / page * page : page; };
  size_t total = GAP;
  for (int i = 0; i < count; i++) total += whole_pages(buffers[i].bytes) + GAP;
  arena = static_cast<char*>(mmap(nullptr, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (arena == MAP_FAILED) {
    arena = nullptr;
    fail(nullptr, "no memory for the buffers");
  }
  arena_end = arena + total;
  char* place = arena + GAP;
  for (int i = 0; i < count; i++) {
    const Buffer& b = buffers[i];
    const size_t size = whole_pages(b.bytes);
    mprotect(place, size, PROT_READ | PROT_WRITE);
    char* begin = place + ((size - b.bytes) & ~size_t(15));  // as near to the guard page as float4 allows
    memcpy(begin, b.data, b.bytes);
    if (!b.is_output) mprotect(place, size, PROT_READ);
    regions.push_back({begin, begin + b.bytes, b.element, bool(b.is_output), bool(b.is_initialised), b.name, {}});
    if (emulator_checked && b.is_output) regions.back().shadow.resize(b.bytes / b.element);
    pointers[i] = begin + b.origin;
    place += size + GAP;
  }
}

void copy_back(const Buffer* buffers) {
  for (size_t i = 0; i < regions.size(); i++) {
    if (buffers[i].is_output) memcpy(buffers[i].data, regions[i].begin, buffers[i].bytes);
  }
}

void unmap_buffers() {
  if (arena) munmap(arena, arena_end - arena);
  arena = arena_end = nullptr;
  regions.clear();
}

void start_threadgroup_memory() {
  Region& r = threadgroup_memory;
  r = {__start_tgmem, __stop_tgmem, 1, true, false, "threadgroup memory", std::move(r.shadow)};
  memset(r.begin, 0xff, r.end - r.begin);  // NaN for who reads it unwritten
  if (emulator_checked) r.shadow.assign(r.end - r.begin, Shadow{{NO_VARIABLE, 0, 0}, {}, {}});
  variables.clear();
  for (Clock& clock : clocks) clock.group_start = ++clock.epoch;
}

void threadgroup_variable(const void* begin, size_t bytes, const char* name) {
  if (!emulator_checked) return;
  const char* first = static_cast<const char*>(begin);
  Shadow* shadow = &threadgroup_memory.shadow[first - threadgroup_memory.begin];
  if (shadow->write.who != NO_VARIABLE) return;  // another thread was here before
  for (size_t i = 0; i < bytes; i++) shadow[i].write.who = 0;
  variables.push_back({first, bytes, name});
  size_t total = 0;
  for (const Variable& v : variables) total += v.bytes;
  if (total > THREADGROUP_LIMIT) {
    fail(nullptr, "%zu bytes of threadgroup memory, the limit is %zu", total, THREADGROUP_LIMIT);
  }
  report->threadgroup_bytes = total;
}

void check_all_written() {
  for (Region& r : regions) {
    if (!r.writable || r.initialised) continue;
    size_t missing = 0, first = 0;
    for (size_t i = r.shadow.size(); i-- > 0;) {
      if (!r.shadow[i].write.who && !r.shadow[i].atomic.who) missing++, first = i;
    }
    if (missing) {
      fail(nullptr, "%zu of %zu elements of output %s were never written, the first at byte %zu", missing,
           r.shadow.size(), r.name, first * r.element);
    }
  }
}

}  // namespace emu
