// Who works on one memory: a block or, for large memories, a team of blocks that the launcher
// starts together, so that they can wait for each other. The code of the operators is the same for
// both: what it calls thread(), sync() and so on is that of the team.
//
// blockIdx.x is the memory, blockIdx.y a block of its columns, and gridDim.z blocks are a team. The
// matrices of a lone block are in its shared memory as far as they go; those of a team are in
// global memory, and a block's shared memory stages the tiles of products. A team of 2, 4 or 8
// blocks is a cluster where the architecture has them: its barrier takes a quarter of the time,
// and what blocks tell each other lies in their shared memory, so that nothing is cleared before.
#pragma once

#include "device.h"

namespace kanerva::cuda {

// Where the blocks of a team wait for each other, in global memory; zero when they start.
struct TeamBarrier {
  unsigned arrived;   // over all barriers
  unsigned votes[3];  // of the barrier before, this and the next
};

// What they share.
struct TeamMemory {
  TeamBarrier barrier;
  double partials[2][kMostBlocks];
};

// The head of a block's shared memory.
struct BlockHead {
  double sums[32];  // one for each warp
  TeamMemory* team;
  unsigned barriers;  // that the team has passed; in a cluster, those with something to tell
  // In a cluster: what each block told at this barrier and the one before.
  unsigned votes[2][kMostInCluster];
  double partials[2][kMostInCluster];
};
static_assert(sizeof(BlockHead) <= kHeadBytes);

__device__ inline BlockHead& head() { return *reinterpret_cast<BlockHead*>(dynamic_shared()); }
// The rest of it, 16-byte aligned.
__device__ inline char* block_memory() { return dynamic_shared() + kHeadBytes; }

__device__ inline bool alone() { return gridDim.z == 1; }
__device__ inline bool in_cluster() { return cluster_blocks() > 1; }
__device__ inline int blocks() { return int(gridDim.z); }
__device__ inline int block_rank() { return int(blockIdx.z); }
__device__ inline int block_thread() { return int(threadIdx.x); }
__device__ inline int block_threads() { return int(blockDim.x); }

__device__ inline int thread() { return int(blockIdx.z * blockDim.x + threadIdx.x); }
__device__ inline int threads() { return int(gridDim.z * blockDim.x); }
__device__ inline int lane() { return int(threadIdx.x) & 31; }
__device__ inline int warp() { return thread() >> 5; }
__device__ inline int warps() { return threads() >> 5; }

// Barrier of a cluster's blocks.
__device__ inline void sync_cluster() {
  arrive_in_cluster();
  wait_in_cluster();
}

// The same, and whether `vote`, which is a block's, was true in any of them; of barriers counted
// from 0. Blocks tell each other before it, so that none is asked when it has ended.
__device__ inline bool vote_in_cluster(unsigned index, bool vote) {
  unsigned* const votes = head().votes[index % 2];
  if (block_thread() < blocks())
    store_in_cluster(votes + block_rank(), block_thread(), vote ? 1u : 0u);
  sync_cluster();
  unsigned any = 0;
  for (int i = 0; i < blocks(); ++i) any |= votes[i];
  return any != 0;
}

// Called once by every thread of a kernel that teams may run, before anything else.
__device__ inline void join_team(TeamMemory* memory) {
  if (alone()) return;
  if (block_thread() == 0) {
    head().team = memory;
    head().barriers = 0;
  }
  if (in_cluster()) {  // the shared memory of the others is there
    sync_cluster();
  } else {
    __syncthreads();
  }
}

// What one thread of a block does at the team's barrier `index`, counted from 0.
__device__ inline void meet(TeamBarrier& at, unsigned index, bool vote) {
  if (vote) store_relaxed(&at.votes[index % 3], 1u);
  // Everyone has read the votes of two barriers ago.
  if (block_rank() == 0) store_relaxed(&at.votes[(index + 1) % 3], 0u);
  arrive_and_wait(&at.arrived, (index + 1) * gridDim.z);
}

// That barrier, of kernels that count their own; whether `vote` was true in any thread. In a
// cluster they arrive once before the first.
__device__ inline bool team_barrier(TeamBarrier& at, unsigned index, bool vote) {
  vote = __syncthreads_or(vote);
  if (in_cluster()) {
    if (index == 0) wait_in_cluster();
    return vote_in_cluster(index, vote);
  }
  if (block_thread() == 0) meet(at, index, vote);
  __syncthreads();
  return load_relaxed(&at.votes[index % 3]) != 0;
}

// Barrier of the blocks; whether `vote` was true in any of them.
__device__ __noinline__ inline bool team_barrier(bool vote) {
  vote = __syncthreads_or(vote);
  const unsigned index = head().barriers;
  if (in_cluster()) {
    vote = vote_in_cluster(index, vote);
    if (block_thread() == 0) head().barriers = index + 1;
    return vote;
  }
  TeamMemory& team = *head().team;
  __syncthreads();
  if (block_thread() == 0) {
    meet(team.barrier, index, vote);
    head().barriers = index + 1;
  }
  __syncthreads();
  return load_relaxed(&team.barrier.votes[index % 3]) != 0;
}

// Barrier of the team; what its threads wrote before is seen after.
__device__ inline void sync() {
  if (alone()) {
    __syncthreads();
  } else if (in_cluster()) {
    sync_cluster();
  } else {
    team_barrier(false);
  }
}

// The same, and whether x was true in any thread of the team.
__device__ inline bool any(bool x) { return alone() ? __syncthreads_or(x) != 0 : team_barrier(x); }

// Sum over a warp, in every lane.
template <class T>
__device__ inline T warp_sum(T x) {
  for (int distance = 16; distance > 0; distance /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

// Sum over the team, the same in every thread and on every run. Leaves the team synchronised.
__device__ __noinline__ inline double team_sum(double x) {
  x = warp_sum(x);
  double* sums = head().sums;
  __syncthreads();
  if (lane() == 0) sums[block_thread() >> 5] = x;
  __syncthreads();
  double total = 0.0;
  for (int w = 0; w < block_threads() >> 5; ++w) total += sums[w];
  if (alone()) {
    __syncthreads();
    return total;
  }
  const unsigned index = head().barriers;
  double* partials = in_cluster() ? head().partials[index % 2] : head().team->partials[index % 2];
  if (in_cluster()) {
    if (block_thread() < blocks()) store_in_cluster(partials + block_rank(), block_thread(), total);
    sync_cluster();
    if (block_thread() == 0) head().barriers = index + 1;
  } else {
    if (block_thread() == 0) partials[block_rank()] = total;
    sync();
  }
  total = 0.0;
  for (int i = 0; i < blocks(); ++i) total += partials[i];
  return total;
}

}  // namespace kanerva::cuda
