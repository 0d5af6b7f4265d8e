// How a kernel is started for its memories: one block each, or a team of blocks where a memory is
// large.
#pragma once

#include "launchers.h"
#include "tiles.cuh"

namespace kanerva::cuda {

// What one memory costs: multiply-adds, and barriers of its team.
struct Work {
  double operations, barriers;
};

// The most blocks a memory's team can have: the processors that the memories leave it, or as many
// as its largest matrix has tiles for threads.
inline int most_blocks(const Sizes& n, const Device& device) {
  if (device.shared_per_block < sizeof(TileMemory)) return 1;
  const int64_t wide = n.C > n.K ? n.C : n.K, tiles = (n.K * wide + 4095) / 4096;
  int64_t most = device.processors / (n.B > 0 ? n.B : 1);
  if (device.team_work < 0.0) most = most < tiles ? most : tiles;  // else teams are asked for
  return int(most < kMostBlocks ? most : kMostBlocks);
}

// Clusters of so many blocks that run at the same time where a processor has `resident` of these:
// the processors of a cluster share a part of the device, of which those with clusters have 16 or
// more each.
inline int64_t clusters_at_once(int blocks, const Device& device, int resident = 1) {
  const int64_t parts = device.processors / 16;
  return parts > 0 ? parts * (16 / blocks) * resident : device.processors * resident / blocks;
}

// What a team takes, in multiply-adds of a block. A block does about 64 a clock, 1e11 a second:
// product() loads 8 numbers of shared memory for 16 of them. A barrier of a team takes about 2 us,
// as long as 2e5, that of a cluster a quarter of one; those of a block are not counted.
inline double cost_of_team(const Work& work, int blocks, const Device& device) {
  const double barrier = is_cluster(device, blocks) ? 2.5e4 : 2e5;
  return work.operations / double(blocks) + barrier * work.barriers;
}

// Whether a team of `blocks` is faster by count than one block that does `alone` multiply-adds.
inline bool team_pays(const Work& work, int blocks, double alone, const Device& device) {
  if (blocks < 2) return false;
  if (device.team_work >= 0.0) return work.operations >= device.team_work;
  return cost_of_team(work, blocks, device) < alone;
}

// The blocks of a memory's team: as many as there may be or, in a cluster, up to 8, of those that
// pay; 1 where none does. Among teams the operations count 13 times: their matrices are in global
// memory, for which products wait (4 to 6 multiply-adds a clock, by the interpreter's counts).
inline int choose_team(const Sizes& n, const Work& work, double alone, const Device& device) {
  const int most = most_blocks(n, device);
  const Work waiting = {13 * work.operations, work.barriers};
  // Of memories that may have kernels of their own no more than without clusters.
  Device plain = device;
  plain.has_clusters = false;
  if (n.K <= 64) return team_pays(work, most, alone, plain) ? most : 1;
  int best = 1;
  for (const int blocks : {most, kMostInCluster, 4, 2}) {
    if (blocks > most || !team_pays(work, blocks, alone, device)) continue;
    if (best == 1 || cost_of_team(waiting, blocks, device) < cost_of_team(waiting, best, device))
      best = blocks;
    if (device.team_work >= 0.0) break;  // they are asked for: as many as there may be
  }
  return best;
}

// Threads of a block whose largest matrix has so many elements.
inline int threads_for(int64_t elements) {
  return elements <= 1024 ? 64 : elements <= 4096 ? 128 : 256;
}

// Shared memory of a block: that of its matrices or, in a team, of tiles.
inline size_t shared_bytes(int team, size_t matrices) {
  return team > 1 ? sizeof(TileMemory) : matrices;
}

struct BlockPlan {
  int tile = 1;  // queries at a time
  int team = 1;  // blocks per memory
  bool in_clusters = false;
  int threads = 64;
  size_t shared = 0, global = 0;  // bytes of scratch memory per block, or per team
  size_t teams = 0;               // bytes at the start of the workspace, for the teams
};

// make(arena, tile) requests the buffers of a memory from the arena; work(tile) is its Work.
template <class Make, class Count>
BlockPlan plan_block(const Sizes& n, const Device& device, Make make, Count work) {
  BlockPlan plan;
  const auto layout = [&](size_t shared) {
    Arena arena(nullptr, shared, nullptr);
    make(arena, plan.tile);
    return arena;
  };
  const int64_t T = n.T < 1 ? 1 : n.T;
  constexpr int64_t longest = 32, shortest = 8, longest_of_team = 512;
  plan.tile = int(T < longest_of_team ? T : longest_of_team);
  plan.team = choose_team(n, work(plan.tile), work(longest).operations, device);
  if (plan.team > 1) {
    plan.in_clusters = is_cluster(device, plan.team);
    plan.threads = kTileThreads;
    plan.global = layout(0).global_used();  // all of it: a block's shared memory is its own
    plan.teams = size_t(n.B) * sizeof(TeamMemory);
    return plan;
  }
  plan.tile = int(T < longest ? T : longest);
  while (plan.tile > shortest && layout(device.shared_per_block).global_used() > 0)
    plan.tile = (plan.tile + 1) / 2;
  const Arena chosen = layout(device.shared_per_block);
  plan.shared = chosen.shared_used();
  plan.global = chosen.global_used();
  plan.threads = threads_for(n.K * (n.C > n.K ? n.C : n.K));
  return plan;
}

// What every thread of such a kernel calls first: the scratch memory of memory b.
__device__ inline Arena enter(const BlockPlan& plan, char* workspace, int64_t b) {
  join_team(reinterpret_cast<TeamMemory*>(workspace) + b);
  return Arena(block_memory(), plan.shared, workspace + plan.teams + b * int64_t(plan.global));
}

inline size_t workspace_of(const Sizes& n, const BlockPlan& plan) {
  return plan.teams + size_t(n.B) * plan.global;
}

template <class Args, class... More>
void start(void (*kernel)(Args, BlockPlan, char*, More...), const Args& args, const Launch& to,
           const BlockPlan& plan, typename Same<More>::type... more) {
  if (plan.teams > 0 && !plan.in_clusters) clear(to.workspace, plan.teams, to.stream);
  launch(kernel, {args.n.B, 1, plan.team, plan.in_clusters}, plan.threads,
         shared_bytes(plan.team, plan.shared), to.stream, args, plan,
         static_cast<char*>(to.workspace), more...);
}

}  // namespace kanerva::cuda
