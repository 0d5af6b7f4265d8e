// What fibers wait at: barriers of a block and of a team, operations of a warp.
#pragma once

#include "fibers.h"

namespace kanerva::cuda::host {

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
  Run& run = *active;
  Fiber& fiber = *run.current;
  Block& b = *fiber.block;
  bool skipped = fiber.barriers++ == run.skip;
  if (skipped && kind == Kind::sync) return 0;
  fiber.order = &b.order[b.epoch % 2];
  fiber.kind = kind;
  fiber.given = predicate != 0;
  fiber.state = State::at_barrier;
  if (!skipped) release(fiber.order);
  if (++b.arrived == b.threads) {
    Fiber* all[kMaxThreads];
    uint64_t random = next_random(run);
    for (unsigned i = 0; i < b.threads; ++i) {
      all[i] = &b.fibers[i];
      if (all[i]->kind != kind) fail(run, fiber, "waits at another kind of barrier than others do");
      if (all[i]->barriers != fiber.barriers) fail(run, fiber, "has passed more or fewer barriers");
    }
    if (kind != Kind::sync) combine(all, b.threads);
    for (unsigned i = 0; i < b.threads; ++i)
      push_ready(all[in_turn(i, b.threads, b.epoch, random)]);
    b.arrived = 0;
    ++b.epoch;
  }
  suspend(run, fiber);
  if (!skipped) acquire(fiber.order);
  return int(fiber.taken);
}

// An operation of the lanes `mask` of a warp.
KANERVA_UNSEEN inline uint64_t wait_at_warp(Kind kind, unsigned mask, unsigned source,
                                            uint64_t value) {
  Run& run = *active;
  Fiber& fiber = *run.current;
  Block& b = *fiber.block;
  unsigned start = fiber.index.x / kWarp * kWarp, lane = fiber.index.x % kWarp;
  Warp& warp = b.warps[start / kWarp];
  unsigned exist = b.threads - start;
  if (exist < kWarp) mask &= (1u << exist) - 1;
  if (!(mask >> lane & 1))
    fail(run, fiber, "takes part in a warp operation without being in its mask");
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
        fail(run, fiber, "is at another warp operation than a lane that its mask names");
      if (kind != Kind::shuffle) continue;
      if (other->source >= kWarp || !(mask >> other->source & 1))
        fail(run, *other, "reads the value of a lane that takes no part in the shuffle");
      other->taken = b.fibers[start + other->source].given;
    }
    if (kind != Kind::shuffle && kind != Kind::sync) combine(who, n);
    uint64_t random = next_random(run);
    for (unsigned i = 0; i < n; ++i) push_ready(who[in_turn(i, n, warp.turn, random)]);
    ++warp.turn;
    warp.arrived[lowest] = 0;
    ++warp.epoch[lowest];
  }
  suspend(run, fiber);
  acquire(fiber.order);
  return fiber.taken;
}

// A barrier of the blocks of a team, called by one thread of each, which has just raised *counter
// to `count`. Two barriers' orders alternate: a block that goes ahead to the next one must not
// come before those that have yet to leave this one.
KANERVA_UNSEEN inline void wait_for_team(const unsigned* counter, unsigned count, unsigned target) {
  Run& run = *active;
  Fiber& fiber = *run.current;
  Block& b = *fiber.block;
  Team& team = *run.team;
  if (b.at_team != nullptr)
    fail(run, fiber, "waits for the team, as another thread of its block does");
  if (team.arrived == 0) team.counter = counter, team.target = target;
  if (team.counter != counter || team.target != target)
    fail(run, fiber, "waits for another count than other blocks of its team do");
  bool skipped = int(team.epoch) == run.skip_team;
  fiber.order = &team.order[team.epoch % 2];
  fiber.state = State::at_team;
  b.at_team = &fiber;
  if (!skipped) release(fiber.order);
  ++team.arrived;
  if (count >= target && team.arrived < team.size)
    fail(run, fiber, "finds its team's barrier passed before all blocks are there");
  if (count >= target) {
    for (unsigned i = 0; i < team.size; ++i) {
      push_ready(team.blocks[i].at_team);
      team.blocks[i].at_team = nullptr;
    }
    team.arrived = 0;
    ++team.epoch;
  }
  suspend(run, fiber);
  if (!skipped) acquire(fiber.order);
}

}  // namespace kanerva::cuda::host
