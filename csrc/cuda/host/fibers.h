// A block's threads as fibers of one operating system thread: a fiber runs until it waits at a
// barrier or a warp operation. The blocks of a team are all alive at once; teams, and blocks
// without a team, run one after another. A sanitizer sees the fibers as threads that only those
// operations order, so that ThreadSanitizer finds the races of a kernel.
//
// Environment: KANERVA_HOST_SEED is that of the order in which fibers go on after a barrier and
// blocks of a team take turns. KANERVA_HOST_SKIP_BARRIER=n leaves out the n-th __syncthreads, from
// 0, of every block. KANERVA_HOST_SKIP_TEAM_BARRIER=n leaves out what the n-th barrier between the
// blocks of a team orders: they wait for each other, but a sanitizer does not know.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "sanitizers.h"

#if defined(__x86_64__) && defined(__ELF__)
#define KANERVA_HOST_SWITCH 1
// Saves what a call must preserve and the stack pointer (to *from), and goes on with those of `to`.
extern "C" void kanerva_host_switch(void** from, void* to);
asm(R"(
.pushsection .text.kanerva_host_switch,"axG",@progbits,kanerva_host_switch,comdat
.weak kanerva_host_switch
.hidden kanerva_host_switch
.type kanerva_host_switch,@function
kanerva_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size kanerva_host_switch,.-kanerva_host_switch
.popsection
)");
#else
#include <ucontext.h>
#endif

namespace kanerva::cuda::host {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

constexpr unsigned kWarp = 32, kMaxThreads = 1024;
constexpr size_t kStack = 128 * 1024;
// Stacks a power of two apart would all lie in the same few sets of the cache.
constexpr size_t kStackStride = kStack + 320;
constexpr uint64_t kCanary = 0x5ca1ab1e0ddba11;

enum class State : uint8_t { ready, at_barrier, at_warp, at_team, done };
enum class Kind : uint8_t { sync, any, all, count, ballot, shuffle };

struct Block;

struct Fiber {
#if defined(KANERVA_HOST_SWITCH)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  const void* stack = nullptr;  // its lowest byte
  size_t stack_size = 0;
  Block* block = nullptr;
  Index index;
  State state = State::ready;
  Kind kind = Kind::sync;
  unsigned lanes = 0, source = 0;  // of a warp operation: who takes part, whose value is wanted
  uint64_t given = 0, taken = 0;   // value brought to an operation and got from it
  int barriers = 0;                // barriers reached so far
  void* order = nullptr;           // what a sanitizer knows the operation by
  Sanitized sanitized;
};

struct Warp {
  unsigned arrived[kWarp] = {}, epoch[kWarp] = {};  // per lowest lane of an operation
  char order[kWarp][2] = {};
  unsigned turn = 0;
  float factors[kWarp][6];  // of a product in tensor cores
};

struct Block {
  unsigned threads = 0;
  Index index;
  char* shared = nullptr;
  Fiber* fibers = nullptr;
  Warp* warps = nullptr;
  Fiber** ready = nullptr;  // a ring of `threads`
  unsigned first = 0, waiting = 0;
  unsigned arrived = 0, epoch = 0, done = 0;
  Fiber* at_team = nullptr;  // who waits for the other blocks
  char order[2] = {};
};

// Blocks that run at once.
struct Team {
  Block* blocks = nullptr;
  unsigned size = 0;
  unsigned arrived = 0, epoch = 0;  // blocks at the barrier, barriers passed
  const unsigned* counter = nullptr;
  unsigned target = 0;  // of the barrier's counter
  char order[2] = {};
};

struct Run {
  Index dim, grid;
  void (*invoke)(void*) = nullptr;
  void* body = nullptr;
  Team* team = nullptr;
  Fiber outside;
  Fiber *current = nullptr, *previous = nullptr;
  int skip = -1, skip_team = -1;
  uint64_t random = 0;
  char order = 0;
  Fiber* culprit = nullptr;
  const char* reason = nullptr;
};

inline thread_local Run* active = nullptr;
inline thread_local int last_barriers = 0;

// Calls of __syncthreads by the last block which this thread ran (skipped ones counted).
inline int barriers_of_last_block() { return last_barriers; }

KANERVA_UNSEEN inline void push_ready(Fiber* fiber) {
  Block& b = *fiber->block;
  fiber->state = State::ready;
  unsigned slot = b.first + b.waiting++;
  b.ready[slot < b.threads ? slot : slot - b.threads] = fiber;
}

// The i-th of n to go on at the given turn: forward, backward, from somewhere in the middle.
KANERVA_UNSEEN inline unsigned in_turn(unsigned i, unsigned n, unsigned turn, uint64_t random) {
  if (turn % 3 == 0) return i;
  if (turn % 3 == 1) return n - 1 - i;
  return unsigned((i + random) % n);
}

KANERVA_UNSEEN inline uint64_t next_random(Run& run) {
  run.random ^= run.random << 13;
  run.random ^= run.random >> 7;
  run.random ^= run.random << 17;
  return run.random >> 11;
}

KANERVA_UNSEEN inline void switch_to(Run& run, Fiber& from, Fiber& to) {
  if (&from == &to) return;
  run.previous = &from;
  run.current = &to;
  leave_fiber(from.sanitized, from.state == State::done, to.sanitized, to.stack, to.stack_size);
#if defined(KANERVA_HOST_SWITCH)
  kanerva_host_switch(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
  enter_fiber(from.sanitized, nullptr, nullptr);
}

// Lets the others go on until this fiber is ready again: those of its block, as a rule, and
// sometimes those of another.
KANERVA_UNSEEN inline void suspend(Run& run, Fiber& fiber) {
  Team& team = *run.team;
  Block* b = fiber.block;
  if (team.size > 1 && (b->waiting == 0 || next_random(run) % 64 == 0)) {
    unsigned start = unsigned(next_random(run) % team.size), i = 0;
    while (i < team.size && team.blocks[(start + i) % team.size].waiting == 0) ++i;
    b = &team.blocks[(start + i) % team.size];
  }
  Fiber* next = &run.outside;
  if (b->waiting > 0) {
    next = b->ready[b->first];
    b->first = b->first + 1 == b->threads ? 0 : b->first + 1;
    --b->waiting;
  }
  switch_to(run, fiber, *next);
}

// Ends the launch with an error; the stacks of its fibers are abandoned.
[[noreturn]] KANERVA_UNSEEN inline void fail(Run& run, Fiber& fiber, const char* reason) {
  run.culprit = &fiber;
  run.reason = reason;
  switch_to(run, fiber, run.outside);
  std::abort();
}

KANERVA_UNSEEN inline void run_fiber() {
  Run& run = *active;
  Fiber& fiber = *run.current;
  bool from_outside = run.previous == &run.outside;
  enter_fiber(fiber.sanitized, from_outside ? &run.outside.stack : nullptr,
              from_outside ? &run.outside.stack_size : nullptr);
  run.invoke(run.body);
  release(&run.order);
  fiber.state = State::done;
  ++fiber.block->done;
  suspend(run, fiber);
  std::abort();
}

// The stacks of an operating system thread's fibers.
class Stacks {
 public:
  ~Stacks() { free(); }

  char* get(unsigned i) const { return memory_ + i * kStackStride; }

  // Memory for n stacks, free of what sanitizers know of earlier use.
  void prepare(unsigned n) {
    if (n * kStackStride > size_) {
      free();
      memory_ = map(nullptr, n * kStackStride, 0);
      size_ = n * kStackStride;
    } else {
      forget(memory_, n * kStackStride);
    }
    for (unsigned i = 0; i < n; ++i) std::memcpy(get(i), &kCanary, sizeof kCanary);
  }

  bool overflowed(unsigned i) const { return std::memcmp(get(i), &kCanary, sizeof kCanary) != 0; }

 private:
  static char* map(void* where, size_t size, int flags) {
    void* got = mmap(where, size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
    if (got == MAP_FAILED) throw std::bad_alloc();
    return static_cast<char*>(got);
  }

  static void forget(char* memory, size_t size) {
#if defined(KANERVA_HOST_TSAN)
    // Otherwise a block's accesses would race with those of an earlier one to the same stack.
    map(memory, (size + 4095) / 4096 * 4096, MAP_FIXED);
#elif defined(KANERVA_HOST_ASAN)
    __asan_unpoison_memory_region(memory, size);
#else
    (void)memory, (void)size;
#endif
  }

  void free() {
    if (memory_) munmap(memory_, size_);
    memory_ = nullptr;
  }

  char* memory_ = nullptr;
  size_t size_ = 0;
};

inline thread_local Stacks stacks;

inline void start_fiber(Fiber& fiber, char* stack) {
  fiber.stack = stack;
  fiber.stack_size = kStack;
#if defined(KANERVA_HOST_SWITCH)
  // As kanerva_host_switch leaves a stack: six registers, then where to return to.
  uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + kStack) & ~uintptr_t(15);
  void** frame = reinterpret_cast<void**>(top) - 8;
  for (int i = 0; i < 8; ++i) frame[i] = nullptr;
  frame[6] = reinterpret_cast<void*>(&run_fiber);
  fiber.stack_pointer = frame;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, run_fiber, 0);
#endif
}

}  // namespace kanerva::cuda::host
