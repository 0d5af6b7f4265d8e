// Runs the blocks of a launch.
#pragma once

#include "barriers.h"

namespace kanerva::cuda::host {

inline std::string place(const Block& b) {
  std::string index = std::to_string(b.index.x) + ", " + std::to_string(b.index.y);
  if (active->grid.z > 1) index += ", " + std::to_string(b.index.z);
  return "block (" + index + ") of " + std::to_string(b.threads) + " threads";
}

// Why the blocks cannot go on, although some of their threads have not returned: of a team, the
// block that does not wait for the others, if there is one.
KANERVA_UNSEEN inline std::string describe_deadlock(const Team& team) {
  const Block* b = &team.blocks[0];
  for (unsigned i = team.size; i-- > 0;)
    if (team.blocks[i].at_team == nullptr) b = &team.blocks[i];
  int at_barrier = 0, at_warp = 0, example = -1, barrier = -1;
  for (unsigned i = 0; i < b->threads; ++i) {
    State state = b->fibers[i].state;
    if (state == State::at_barrier) ++at_barrier, barrier = b->fibers[i].barriers - 1;
    if (state == State::at_warp) ++at_warp, example = int(i);
  }
  std::string text = "divergence in " + place(*b) + ": " + std::to_string(b->done) + " returned";
  if (at_barrier) {
    text += ", " + std::to_string(at_barrier) + " wait at __syncthreads (barrier " +
            std::to_string(barrier) + ")";
  }
  if (at_warp) {
    text += ", " + std::to_string(at_warp) + " wait at a warp operation (thread " +
            std::to_string(example) + " among them)";
  }
  if (team.arrived) {
    text += "; " + std::to_string(team.arrived) + " of " + std::to_string(team.size) +
            " blocks wait for the team (barrier " + std::to_string(team.epoch) + " of the team)";
  }
  return text;
}

// Blocks that run at once and what their threads need. Every team has one of its own: a sanitizer
// would take what earlier blocks did at the same addresses for ordered.
struct TeamOwner {
  TeamOwner(unsigned size, unsigned threads)
      : blocks(new Block[size]),
        fibers(new Fiber[size_t(size) * threads]),
        warps(new Warp[size_t(size) * (threads / kWarp + 1)]),
        ready(new Fiber*[size_t(size) * threads]),
        team(new Team) {
    team->blocks = blocks.get();
    team->size = size;
    for (unsigned i = 0; i < size; ++i) {
      blocks[i].threads = threads;
      blocks[i].fibers = &fibers[size_t(i) * threads];
      blocks[i].warps = &warps[size_t(i) * (threads / kWarp + 1)];
      blocks[i].ready = &ready[size_t(i) * threads];
    }
  }

  std::unique_ptr<Block[]> blocks;
  std::unique_ptr<Fiber[]> fibers;
  std::unique_ptr<Warp[]> warps;
  std::unique_ptr<Fiber*[]> ready;
  std::unique_ptr<Team> team;
};

KANERVA_UNSEEN inline void run_team(Run& run, Team& team) {
  unsigned threads = run.dim.x, all = team.size * threads;
  Fiber* fibers = team.blocks[0].fibers;  // of all blocks
  run.team = &team;
  run.current = &run.outside;
  run.outside.block = &team.blocks[0];
  stacks.prepare(all);
  for (unsigned i = 0; i < all; ++i) {
    fibers[i].block = &team.blocks[i / threads];
    fibers[i].index.x = i % threads;
    start_fiber(fibers[i], stacks.get(i));
    create_fiber(fibers[i].sanitized);
  }
  for (unsigned i = 0; i < team.size; ++i) {
    uint64_t random = next_random(run);
    unsigned turn = unsigned(next_random(run) % 3);
    for (unsigned j = 0; j < threads; ++j)
      push_ready(&team.blocks[i].fibers[in_turn(j, threads, turn, random)]);
  }
  suspend(run, run.outside);
  for (unsigned i = 0; i < all; ++i) {
    if (fibers[i].state != State::done)
      release_for(fibers[i].sanitized, run.outside.sanitized, &run.order);
    destroy_fiber(fibers[i].sanitized);
  }
  last_barriers = fibers[0].barriers;
  if (run.reason) {
    throw std::runtime_error(place(*run.culprit->block) + ": thread " +
                             std::to_string(run.culprit->index.x) + " " + run.reason);
  }
  for (unsigned i = 0; i < team.size; ++i)
    if (team.blocks[i].done < threads) throw std::runtime_error(describe_deadlock(team));
  for (unsigned i = 0; i < all; ++i) {
    if (stacks.overflowed(i))
      throw std::runtime_error(place(*fibers[i].block) + ": a thread's stack overflowed");
  }
}

inline int64_t environment(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text && *text ? std::atoll(text) : otherwise;
}

// Runs body() in each thread of a grid. Shared memory is a heap buffer of exactly shared_bytes for
// each block, all NaN when the block starts. Throws std::runtime_error where threads of a block or
// blocks of a team diverge.
template <class Body>
void run_blocks(Grid grid, unsigned threads, size_t shared_bytes, Body body) {
  if (threads < 1 || threads > kMaxThreads)
    throw std::runtime_error("a block of " + std::to_string(threads) + " threads");
  if (grid.z < 1 || grid.z > kMostBlocks)
    throw std::runtime_error("a team of " + std::to_string(grid.z) + " blocks");
  if (grid.x > 0x7fffffff || grid.y > 65535)
    throw std::runtime_error("a grid beyond what a device takes");
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::vector<std::unique_ptr<char, Free>> buffers;
  struct Activate {
    explicit Activate(Run* run) : before(active) { active = run; }
    ~Activate() {
      // Only here do the blocks come before what follows: they are not ordered among themselves.
      acquire(&active->order);
      active = before;
    }
    Run* before;
  };

  Run run;
  run.dim = {threads, 1, 1};
  run.grid = {unsigned(grid.x), unsigned(grid.y), unsigned(grid.z)};
  run.body = &body;
  run.invoke = [](void* p) { (*static_cast<Body*>(p))(); };
  run.skip = int(environment("KANERVA_HOST_SKIP_BARRIER", -1));
  run.skip_team = int(environment("KANERVA_HOST_SKIP_TEAM_BARRIER", -1));
  run.random = uint64_t(environment("KANERVA_HOST_SEED", 1)) * 0x9e3779b97f4a7c15u | 1;
  this_fiber(run.outside.sanitized);
  Activate activate(&run);
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      TeamOwner owner(run.grid.z, threads);
      // A sanitizer must see every block's shared memory as memory of its own.
      size_t used = kSanitized ? buffers.size() : 0;
      for (unsigned z = 0; z < run.grid.z; ++z) {
        if (used + z == buffers.size()) {
          buffers.emplace_back(static_cast<char*>(std::malloc(shared_bytes)));
          if (!buffers.back() && shared_bytes > 0) throw std::bad_alloc();
        }
        Block& b = owner.blocks[z];
        b.shared = buffers[used + z].get();
        if (shared_bytes > 0) std::memset(b.shared, 0xff, shared_bytes);
        b.index = {x, y, z};
      }
      run_team(run, *owner.team);
    }
  }
}

}  // namespace kanerva::cuda::host
