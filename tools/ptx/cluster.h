// Blocks of a cluster: their barrier, and the shared memory that they reach of each other.
//
// barrier.cluster (PTX ISA, "barrier.cluster"): a thread arrives, later waits until all threads of
// the cluster that have not ended have arrived. What a thread did before it arrived, unless that
// was .relaxed, comes before what others do after their wait. Blocks start and end in any order: a
// block's shared memory is there from the first barrier that both have passed on, and until its
// last thread ends.
#pragma once

#include "happens_before.h"

namespace ptx {

struct Instruction;

struct Cluster {
  std::vector<Block*> blocks;      // [rank]; null before it starts and after it is gone
  uint32_t size = 0, missing = 0;  // how many there are; that have not started
  uint64_t phase = 0;              // barriers that are complete
  SharedView view;                 // what the last one tells
};

// Lanes arrive, or wait: false where they have to.
void arrive_in_cluster(Warp& warp, const Instruction& i, uint32_t lanes);
bool wait_in_cluster(Warp& warp, const Instruction& i, uint32_t lanes);
// Lets those that wait go on where the barrier is complete; whether it is now.
bool pass_cluster_barrier(Cluster& cluster);
// All threads of a block have ended, or these lanes.
void end_in_cluster(Block& block);
void end_in_cluster(Warp& warp, const Instruction& i, uint32_t lanes);
// The block that an address in .shared::cluster reaches; a fault where none is there for sure.
Block& block_of_address(Warp& warp, const Instruction& i, int lane, uint64_t address);

}  // namespace ptx
