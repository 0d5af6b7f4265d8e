// A block's threads as fibers of one operating system thread: blocks run one after another, a fiber
// runs until it waits at a barrier or a warp operation. A sanitizer sees the fibers as threads that
// only those operations order, so that ThreadSanitizer finds the races of a kernel.
//
// Environment: KANERVA_HOST_SEED (of the order in which fibers go on after a barrier) and
// KANERVA_HOST_SKIP_BARRIER=n (the block's n-th barrier, from 0, is left out).
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

enum class State : uint8_t { ready, at_barrier, at_warp, done };
enum class Kind : uint8_t { sync, any, all, count, ballot, shuffle };

struct Fiber {
#if defined(KANERVA_HOST_SWITCH)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  const void* stack = nullptr;  // its lowest byte
  size_t stack_size = 0;
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
};

struct Block {
  unsigned threads = 0;
  Index dim, grid, index;
  char* shared = nullptr;
  void (*invoke)(void*) = nullptr;
  void* body = nullptr;
  Fiber* fibers = nullptr;
  Warp* warps = nullptr;
  Fiber outside;
  Fiber *current = nullptr, *previous = nullptr;
  Fiber** ready = nullptr;  // a ring of `threads`
  unsigned first = 0, waiting = 0;
  unsigned arrived = 0, epoch = 0, done = 0;
  int skip = -1;
  uint64_t random = 0;
  char order[2] = {};
  char launch_order = 0;
  Fiber* culprit = nullptr;
  const char* reason = nullptr;
};

inline thread_local Block* active = nullptr;
inline thread_local int last_barriers = 0;

// Barriers that the last block which this thread ran has passed (skipped ones counted).
inline int barriers_of_last_block() { return last_barriers; }

KANERVA_UNSEEN inline void push_ready(Block& b, Fiber* fiber) {
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

KANERVA_UNSEEN inline uint64_t next_random(Block& b) {
  b.random ^= b.random << 13;
  b.random ^= b.random >> 7;
  b.random ^= b.random << 17;
  return b.random >> 11;
}

KANERVA_UNSEEN inline void switch_to(Block& b, Fiber& from, Fiber& to) {
  if (&from == &to) return;
  b.previous = &from;
  b.current = &to;
  leave_fiber(from.sanitized, from.state == State::done, to.sanitized, to.stack, to.stack_size);
#if defined(KANERVA_HOST_SWITCH)
  kanerva_host_switch(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
  enter_fiber(from.sanitized, nullptr, nullptr);
}

// Lets the others go on until this fiber is ready again.
KANERVA_UNSEEN inline void suspend(Block& b, Fiber& fiber) {
  Fiber* next = &b.outside;
  if (b.waiting > 0) {
    next = b.ready[b.first];
    b.first = b.first + 1 == b.threads ? 0 : b.first + 1;
    --b.waiting;
  }
  switch_to(b, fiber, *next);
}

// Ends the block with an error; the stacks of its fibers are abandoned.
[[noreturn]] KANERVA_UNSEEN inline void fail(Block& b, Fiber& fiber, const char* reason) {
  b.culprit = &fiber;
  b.reason = reason;
  switch_to(b, fiber, b.outside);
  std::abort();
}

KANERVA_UNSEEN inline void combine(Fiber** who, unsigned n) {
  uint64_t count = 0, ballot = 0;
  for (unsigned i = 0; i < n; ++i) {
    bool yes = who[i]->given != 0;
    count += yes;
    ballot |= uint64_t(yes) << (who[i]->index.x % kWarp);
  }
  for (unsigned i = 0; i < n; ++i) {
    Kind kind = who[i]->kind;
    who[i]->taken = kind == Kind::any     ? count > 0
                    : kind == Kind::all   ? count == n
                    : kind == Kind::count ? count
                                          : ballot;
  }
}

// A barrier of the block; the predicate's combination over the block.
KANERVA_UNSEEN inline int wait_at_barrier(Kind kind, int predicate) {
  Block& b = *active;
  Fiber& fiber = *b.current;
  bool skipped = fiber.barriers++ == b.skip;
  if (skipped && kind == Kind::sync) return 0;
  fiber.order = &b.order[b.epoch % 2];
  fiber.kind = kind;
  fiber.given = predicate != 0;
  fiber.state = State::at_barrier;
  if (!skipped) release(fiber.order);
  if (++b.arrived == b.threads) {
    Fiber* all[kMaxThreads];
    uint64_t random = next_random(b);
    for (unsigned i = 0; i < b.threads; ++i) {
      all[i] = &b.fibers[i];
      if (all[i]->kind != kind) fail(b, fiber, "waits at another kind of barrier than others do");
      if (all[i]->barriers != fiber.barriers) fail(b, fiber, "has passed more or fewer barriers");
    }
    if (kind != Kind::sync) combine(all, b.threads);
    for (unsigned i = 0; i < b.threads; ++i)
      push_ready(b, all[in_turn(i, b.threads, b.epoch, random)]);
    b.arrived = 0;
    ++b.epoch;
  }
  suspend(b, fiber);
  if (!skipped) acquire(fiber.order);
  return int(fiber.taken);
}

// An operation of the lanes `mask` of a warp.
KANERVA_UNSEEN inline uint64_t wait_at_warp(Kind kind, unsigned mask, unsigned source,
                                            uint64_t value) {
  Block& b = *active;
  Fiber& fiber = *b.current;
  unsigned start = fiber.index.x / kWarp * kWarp, lane = fiber.index.x % kWarp;
  Warp& warp = b.warps[start / kWarp];
  unsigned exist = b.threads - start;
  if (exist < kWarp) mask &= (1u << exist) - 1;
  if (!(mask >> lane & 1))
    fail(b, fiber, "takes part in a warp operation without being in its mask");
  unsigned lowest = unsigned(__builtin_ctz(mask)), n = unsigned(__builtin_popcount(mask));
  fiber.order = &warp.order[lowest][warp.epoch[lowest] % 2];
  fiber.kind = kind;
  fiber.lanes = mask;
  fiber.source = source;
  fiber.given = value;
  fiber.state = State::at_warp;
  release(fiber.order);
  if (++warp.arrived[lowest] == n) {
    Fiber* who[kWarp];
    unsigned found = 0;
    for (unsigned i = 0; i < kWarp; ++i) {
      if (!(mask >> i & 1)) continue;
      Fiber* other = who[found++] = &b.fibers[start + i];
      if (other->state != State::at_warp || other->lanes != mask || other->kind != kind)
        fail(b, fiber, "is at another warp operation than a lane that its mask names");
      if (kind != Kind::shuffle) continue;
      if (other->source >= kWarp || !(mask >> other->source & 1))
        fail(b, *other, "reads the value of a lane that takes no part in the shuffle");
      other->taken = b.fibers[start + other->source].given;
    }
    if (kind != Kind::shuffle && kind != Kind::sync) combine(who, n);
    uint64_t random = next_random(b);
    for (unsigned i = 0; i < n; ++i) push_ready(b, who[in_turn(i, n, warp.turn, random)]);
    ++warp.turn;
    warp.arrived[lowest] = 0;
    ++warp.epoch[lowest];
  }
  suspend(b, fiber);
  acquire(fiber.order);
  return fiber.taken;
}

KANERVA_UNSEEN inline void run_fiber() {
  Block& b = *active;
  Fiber& fiber = *b.current;
  bool from_outside = b.previous == &b.outside;
  enter_fiber(fiber.sanitized, from_outside ? &b.outside.stack : nullptr,
              from_outside ? &b.outside.stack_size : nullptr);
  b.invoke(b.body);
  release(&b.launch_order);
  fiber.state = State::done;
  ++b.done;
  suspend(b, fiber);
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
    void* got =
        mmap(where, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
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

inline std::string place(const Block& b) {
  return "block (" + std::to_string(b.index.x) + ", " + std::to_string(b.index.y) + ") of " +
         std::to_string(b.threads) + " threads";
}

// Why the block cannot go on, although some of its threads have not returned.
KANERVA_UNSEEN inline std::string describe_deadlock(const Block& b) {
  int at_barrier = 0, at_warp = 0, example = -1, barrier = -1;
  for (unsigned i = 0; i < b.threads; ++i) {
    State state = b.fibers[i].state;
    if (state == State::at_barrier) ++at_barrier, barrier = b.fibers[i].barriers - 1;
    if (state == State::at_warp) ++at_warp, example = int(i);
  }
  std::string text = "divergence in " + place(b) + ": " + std::to_string(b.done) + " returned";
  if (at_barrier) {
    text += ", " + std::to_string(at_barrier) + " wait at __syncthreads (barrier " +
            std::to_string(barrier) + ")";
  }
  if (at_warp) {
    text += ", " + std::to_string(at_warp) + " wait at a warp operation (thread " +
            std::to_string(example) + " among them)";
  }
  return text;
}

KANERVA_UNSEEN inline void run_block(Block& b) {
  unsigned n = b.threads;
  b.first = b.waiting = b.arrived = b.epoch = b.done = 0;
  b.current = &b.outside;
  stacks.prepare(n);
  for (unsigned i = 0; i < n / kWarp + 1; ++i) b.warps[i] = Warp();
  for (unsigned i = 0; i < n; ++i) {
    b.fibers[i] = Fiber();
    b.fibers[i].index.x = i;
    start_fiber(b.fibers[i], stacks.get(i));
    create_fiber(b.fibers[i].sanitized);
  }
  uint64_t random = next_random(b);
  unsigned turn = unsigned(next_random(b) % 3);
  for (unsigned i = 0; i < n; ++i) push_ready(b, &b.fibers[in_turn(i, n, turn, random)]);
  suspend(b, b.outside);
  for (unsigned i = 0; i < n; ++i) destroy_fiber(b.fibers[i].sanitized);
  last_barriers = b.fibers[0].barriers;
  if (b.reason) {
    throw std::runtime_error(place(b) + ": thread " + std::to_string(b.culprit->index.x) + " " +
                             b.reason);
  }
  if (b.done < n) throw std::runtime_error(describe_deadlock(b));
  for (unsigned i = 0; i < n; ++i) {
    if (stacks.overflowed(i)) throw std::runtime_error(place(b) + ": a thread's stack overflowed");
  }
}

inline int64_t environment(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text && *text ? std::atoll(text) : otherwise;
}

// Runs grid_x x grid_y blocks, body() in each thread. Shared memory is a heap buffer of exactly
// shared_bytes, all NaN when a block starts. Throws std::runtime_error where threads of a block
// diverge.
template <class Body>
void run_blocks(unsigned grid_x, unsigned grid_y, unsigned threads, size_t shared_bytes,
                Body body) {
  if (threads < 1 || threads > kMaxThreads)
    throw std::runtime_error("a block of " + std::to_string(threads) + " threads");
  if (grid_x > 0x7fffffffu || grid_y > 65535u)
    throw std::runtime_error("a grid beyond what a device takes");
  std::unique_ptr<Fiber[]> fibers(new Fiber[threads]);
  std::unique_ptr<Warp[]> warps(new Warp[threads / kWarp + 1]);
  std::unique_ptr<Fiber*[]> ready(new Fiber*[threads]);
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::vector<std::unique_ptr<char, Free>> buffers;
  struct Activate {
    explicit Activate(Block* b) : before(active) { active = b; }
    ~Activate() {
      // Only here do the blocks come before what follows: they are not ordered among themselves.
      acquire(&active->launch_order);
      active = before;
    }
    Block* before;
  };

  Block b;
  b.threads = threads;
  b.dim = {threads, 1, 1};
  b.grid = {grid_x, grid_y, 1};
  b.fibers = fibers.get();
  b.warps = warps.get();
  b.ready = ready.get();
  b.body = &body;
  b.invoke = [](void* p) { (*static_cast<Body*>(p))(); };
  b.skip = int(environment("KANERVA_HOST_SKIP_BARRIER", -1));
  b.random = uint64_t(environment("KANERVA_HOST_SEED", 1)) * 0x9e3779b97f4a7c15u | 1;
  this_fiber(b.outside.sanitized);
  Activate activate(&b);
  for (unsigned y = 0; y < grid_y; ++y) {
    for (unsigned x = 0; x < grid_x; ++x) {
      // A sanitizer must see every block's shared memory as memory of its own.
      if (buffers.empty() || kSanitized) {
        buffers.emplace_back(static_cast<char*>(std::malloc(shared_bytes)));
        if (!buffers.back() && shared_bytes > 0) throw std::bad_alloc();
      }
      b.shared = buffers.back().get();
      if (shared_bytes > 0) std::memset(b.shared, 0xff, shared_bytes);
      b.index = {x, y, 0};
      run_block(b);
    }
  }
}

}  // namespace kanerva::cuda::host
