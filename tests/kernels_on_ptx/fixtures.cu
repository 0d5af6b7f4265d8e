// Small kernels whose results are known, and some with a fault each: they test what nvcc and the
// interpreter make of the library's own barriers, teams and launches. Usage: fixtures CASE; prints
// "ok" where the results are right.
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/cuda/team.cuh"

using namespace kanerva::cuda;

namespace {

constexpr unsigned kAll = ~0u;

// out[block] = sum of the block's part of x; a tree in shared memory, then shuffles. The last
// barrier is not needed: what a thread wrote before it, it reads itself.
__global__ void sum(const float* x, int64_t n, float* out) {
  float* part = reinterpret_cast<float*>(block_memory());
  const int thread = int(threadIdx.x), threads = int(blockDim.x);
  float mine = 0;
  for (int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
    mine += x[i];
  part[thread] = mine;
  __syncthreads();
  for (int half = threads / 2; half >= 32; half /= 2) {
    if (thread < half) part[thread] += part[thread + half];
    __syncthreads();
  }
  if (thread >= 32) return;
  float total = part[thread];
  for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(kAll, total, step);
  if (thread == 0) out[blockIdx.x] = total;
}

// out = x', n x n, a tile of 8 x 8 per block, rows of the tile padded.
__global__ void transpose(const double* x, int n, double* out) {
  double* tile = reinterpret_cast<double*>(block_memory());
  const int column = int(threadIdx.x) % 8, row = int(threadIdx.x) / 8;
  int i = int(blockIdx.y) * 8 + row, j = int(blockIdx.x) * 8 + column;
  if (i < n && j < n) tile[row * 9 + column] = x[i * n + j];
  __syncthreads();
  i = int(blockIdx.x) * 8 + row, j = int(blockIdx.y) * 8 + column;
  if (i < n && j < n) out[i * n + j] = tile[column * 9 + row];
}

// Every warp reverses its 32 values by way of shared memory, scans them by shuffles, and votes.
__global__ void warps(const int* x, int* reversed, int* scanned, int* votes) {
  int* shared = reinterpret_cast<int*>(block_memory());
  const int thread = int(threadIdx.x), lane = thread % 32;
  shared[thread] = x[thread];
  __syncwarp();
  reversed[thread] = shared[thread - lane + 31 - lane];
  int sum = x[thread];
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(kAll, sum, unsigned(step));
    if (lane >= step) sum += other;
  }
  scanned[thread] = sum - __shfl_sync(kAll, sum, 0);
  const int later = __shfl_down_sync(kAll, x[thread], 16);
  int vote = __any_sync(kAll, x[thread] == 40) + 2 * __all_sync(kAll, x[thread] < 64);
  vote += 4 * (__ballot_sync(kAll, lane == 3) == 8) + 8 * (later == x[thread] + (lane < 16) * 16);
  // The halves of a warp, each for itself.
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  vote += 16 * (__shfl_xor_sync(half, lane, 15, 16) == (lane ^ 15));
  vote += 32 * __syncthreads_or(thread == 5) + 64 * __syncthreads_and(thread < 5);
  votes[thread] = vote + 128 * (__syncthreads_count(thread < 5) == 5);
}

// A shuffle orders the lanes of its warp only: the two warps' accesses to shared[0] race.
__global__ void warps_race(int* out) {
  int* shared = reinterpret_cast<int*>(block_memory());
  if (threadIdx.x == 0) shared[0] = 1;
  __shfl_sync(kAll, 1, 0);
  if (threadIdx.x == 32) out[0] = shared[0];
}

__global__ void blocks_race(float* out) { out[threadIdx.x] = 1; }

// A barrier orders the threads of its block only, whether or not the blocks are a team.
__global__ void barriers_race(float* out) {
  const unsigned block = blockIdx.x + blockIdx.z;
  if (block == 0) out[threadIdx.x] = 1;
  __syncthreads();
  if (block == 1) out[threadIdx.x] = 2;
}

__global__ void past_shared(float* out) {
  out[threadIdx.x] = reinterpret_cast<const float*>(block_memory())[threadIdx.x + 1];
}

__global__ void unwritten(float* out) {
  out[threadIdx.x] = reinterpret_cast<const float*>(block_memory())[threadIdx.x];
}

__global__ void diverge(int how) {
  const bool odd = threadIdx.x % 2;
  if (how == 0 && odd) return;
  if (how == 1 && odd) {
    __syncthreads_or(1);
  } else if (how == 2 && odd) {
    __syncwarp();
  } else if (how == 3 && odd) {
    __shfl_sync(0x55555555u, 1, 0);
  } else if (how == 4) {
    __shfl_sync(0x55555555u << odd, 1, odd ? 0 : 1);
  } else if (how == 5 && threadIdx.x == 0) {
    __any_sync(kAll, 1);
  } else if (how == 5) {
    __all_sync(kAll, 1);
  }
  __syncthreads();
}

enum class Waits { properly, not_at_all, without_fences };

// work = x' and out = work', n x n, by a team for each memory: what other blocks wrote is read.
__global__ void team_transpose(TeamMemory* team, const double* x, int n, double* work, double* out,
                               Waits waits) {
  const int64_t start = int64_t(blockIdx.x) * n * n;
  join_team(team + blockIdx.x);
  for (int i = thread(); i < n * n; i += threads()) work[start + i] = x[start + i % n * n + i / n];
  if (waits == Waits::properly) sync();
  if (waits == Waits::without_fences) {
    __syncthreads();
    if (block_thread() == 0) {
      unsigned* arrived = &team[blockIdx.x].barrier.arrived;
      atomicAdd(arrived, 1u);
      while (load_relaxed(arrived) < gridDim.z) {
      }
    }
    __syncthreads();
  }
  for (int i = thread(); i < n * n; i += threads())
    out[start + i] = work[start + i % n * n + i / n];
}

constexpr int kRounds = 7;

// In every round a vote and a sum, both given to every thread.
__global__ void team_rounds(TeamMemory* team, int* votes, double* sums) {
  join_team(team + blockIdx.x);
  const int first = int(blockIdx.x) * threads() * kRounds;
  for (int round = 0; round < kRounds; ++round) {
    const int at = first + round * threads() + thread();
    votes[at] = kanerva::cuda::any(round % 3 != 1 && thread() == (round * 37) % threads());
    sums[at] = team_sum(double(thread()) + round);
  }
}

// One block may be at the next barrier before the other has left the first one, and still what they
// do between the two races.
__global__ void team_ahead(TeamMemory* team, int* x, int* found) {
  join_team(team);
  sync();
  if (thread() == 0) *x = 1;
  if (thread() == threads() - 1) *found = *x;
  sync();
}

// The order in which the blocks come here.
__global__ void team_order(TeamMemory* team, int* tickets, int* order) {
  join_team(team);
  for (int round = 0; round < kRounds; ++round) {
    if (block_thread() == 0) order[atomicAdd(tickets, 1)] = block_rank();
    sync();
  }
}

__global__ void team_diverge(TeamMemory* team, int how) {
  join_team(team);
  sync();
  if (how == 0 && block_rank() == 1) return;
  if (how == 1 && block_rank() == 1 && block_thread() == 0)
    arrive_and_wait(&team->barrier.votes[2], 3);
  if (how == 2 && block_rank() == 1) return __syncwarp(block_thread() == 0 ? 1 : kAll);
  sync();
}

// out = the sum of all blocks' threads, which each block adds up from what the others hold in their
// shared memory. Half: whether the last barrier is left out, before which none may end.
__global__ void cluster_chain(int* out, bool half) {
  auto* own = reinterpret_cast<float4*>(block_memory());
  own[block_thread()] = {float(thread()), 1.0f, 2.0f, 3.0f};
  arrive_in_cluster();
  out[thread()] = 0;
  wait_in_cluster();
  float sum = 0.0f;
  for (int rank = 0; rank < blocks(); ++rank) {
    const float4 x = load_from_cluster(own + block_thread(), rank);
    sum += x.x + x.y + x.z + x.w;
  }
  out[thread()] = int(sum);
  if (!half) sync_cluster();
}

bool run_chain(bool half = false) {
  const int blocks = 8, threads = 64;
  std::vector<int> out(blocks * threads);
  launch(cluster_chain, {1, 1, blocks, true}, threads, threads * sizeof(float4), Stream(),
         out.data(), half);
  bool right = true;
  for (int i = 0; i < blocks * threads; ++i)
    right = right && out[i] == blocks * (6 + i % threads) + threads * blocks * (blocks - 1) / 2;
  return right;
}

bool run_sum() {
  const int64_t n = 1000;
  std::vector<float> x(n), out(3, -1);
  float total = 0;
  for (int64_t i = 0; i < n; ++i) total += x[i] = float(i % 17);
  launch(sum, {3, 1}, 128, 128 * sizeof(float), Stream(), x.data(), n, out.data());
  return out[0] + out[1] + out[2] == total;
}

bool run_transpose() {
  const int n = 21;
  std::vector<double> x(n * n), out(n * n, -1);
  for (int i = 0; i < n * n; ++i) x[i] = i;
  launch(transpose, {3, 3}, 64, 8 * 9 * sizeof(double), Stream(), x.data(), n, out.data());
  bool right = true;
  for (int i = 0; i < n * n; ++i) right = right && out[i] == x[i % n * n + i / n];
  return right;
}

bool run_warps() {
  const int n = 96;
  std::vector<int> x(n), reversed(n), scanned(n), votes(n);
  for (int i = 0; i < n; ++i) x[i] = i;
  launch(warps, {1, 1}, n, n * sizeof(int), Stream(), x.data(), reversed.data(), scanned.data(),
         votes.data());
  bool right = true;
  for (int i = 0; i < n; ++i) {
    const int warp = i / 32, start = warp * 32;
    right = right && reversed[i] == start + 31 - i % 32;
    right = right && scanned[i] == (i + start) * (i - start + 1) / 2 - start;
    right = right && votes[i] == (warp == 1) + 2 * (warp < 2) + 4 + 8 + 16 + 32 + 128;
  }
  return right;
}

bool run_team_transpose(Grid grid, Waits waits, unsigned arrived = 0) {
  const int n = 21, memories = 2;
  std::vector<double> x(memories * n * n), work(x.size()), out(x.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = double(i);
  std::vector<TeamMemory> team(memories);
  team[0].barrier.arrived = arrived;
  grid.x = memories;
  launch(team_transpose, grid, 64, 0, Stream(), team.data(), x.data(), n, work.data(), out.data(),
         waits);
  return out == x;
}

bool run_team_rounds(int64_t blocks, bool in_clusters) {
  const int memories = 2, threads = 96, all = threads * int(blocks);
  std::vector<int> votes(memories * kRounds * all, -1);
  std::vector<double> sums(votes.size(), -1);
  std::vector<TeamMemory> team(memories);
  launch(team_rounds, {memories, 1, blocks, in_clusters}, threads, 0, Stream(), team.data(),
         votes.data(), sums.data());
  bool right = true;
  for (size_t i = 0; i < votes.size(); ++i) {
    const int round = int(i) / all % kRounds;
    right = right && votes[i] == (round % 3 != 1);
    right = right && sums[i] == 0.5 * all * (all - 1) + double(round) * all;
  }
  return right;
}

bool run_team_order(int blocks, bool in_clusters) {
  int tickets = 0;
  std::vector<int> order(kRounds * blocks);
  TeamMemory team = {};
  launch(team_order, {1, 1, blocks, in_clusters}, 64, 0, Stream(), &team, &tickets, order.data());
  for (int block : order) std::printf("%d ", block);
  return tickets == kRounds * blocks;
}

bool run(const std::string& which) {
  std::vector<float> out(32);
  TeamMemory team = {};
  int value = 0, found = 0;
  if (which == "sum") return run_sum();
  if (which == "transpose") return run_transpose();
  if (which == "warps") return run_warps();
  if (which == "team_transpose")
    return run_team_transpose({1, 1, 3}, Waits::properly) &&
           run_team_transpose({1, 1, 1}, Waits::properly);
  if (which == "team_race") return run_team_transpose({1, 1, 3}, Waits::not_at_all);
  if (which == "team_unfenced") return run_team_transpose({1, 1, 3}, Waits::without_fences);
  if (which == "team_early") return run_team_transpose({1, 1, 3}, Waits::properly, 1);
  if (which == "team_rounds") return run_team_rounds(5, false) && run_team_rounds(1, false);
  if (which == "team_order") return run_team_order(6, false);
  // Nothing has to be zero where they start.
  if (which == "cluster_transpose") return run_team_transpose({1, 1, 4, true}, Waits::properly, 7);
  if (which == "cluster_race") return run_team_transpose({1, 1, 4, true}, Waits::not_at_all);
  if (which == "cluster_rounds") return run_team_rounds(4, true) && run_team_rounds(8, true);
  if (which == "cluster_order") return run_team_order(4, true);
  if (which == "cluster_chain") return run_chain();
  if (which == "cluster_half") return run_chain(true);
  if (which == "warps_race") {
    launch(warps_race, {1, 1}, 64, sizeof(int), Stream(), &found);
  } else if (which == "blocks_race") {
    launch(blocks_race, {2, 1}, 32, 0, Stream(), out.data());
  } else if (which == "barriers_race") {
    launch(barriers_race, {2, 1}, 32, 0, Stream(), out.data());
  } else if (which == "team_barriers_race") {
    launch(barriers_race, {1, 1, 2}, 32, 0, Stream(), out.data());
  } else if (which == "team_ahead") {
    launch(team_ahead, {1, 1, 2}, 32, 0, Stream(), &team, &value, &found);
  } else if (which.rfind("team_diverge", 0) == 0) {
    launch(team_diverge, {1, 1, 3}, 64, 0, Stream(), &team, which.back() - '0');
  } else if (which == "unwritten") {
    launch(unwritten, {1, 1}, 32, 32 * sizeof(float), Stream(), out.data());
  } else if (which == "past_shared") {
    launch(past_shared, {1, 1}, 32, 32 * sizeof(float), Stream(), out.data());
  } else if (which.rfind("diverge", 0) == 0) {
    launch(diverge, {2, 1}, 64, 0, Stream(), which.back() - '0');
  } else {
    return false;
  }
  return true;
}

}  // namespace

int main(int count, char** words) try {
  const bool right = count > 1 && run(words[1]);
  std::puts(right ? "ok" : "wrong");
  return right ? 0 : 1;
} catch (const std::runtime_error& error) {
  std::printf("error: %s\n", error.what());
  return 2;
}
