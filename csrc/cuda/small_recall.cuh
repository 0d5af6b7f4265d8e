// Addresses by least squares, and the read at them, for memories of at most 64 slots and at least
// as many columns: by one block per memory and share of the queries, in float32.
//
//   A = R R' + lambda I = F F',  V = F^-1,  A^-1 = V'V,  w = A^-1 R z,  values = R'w,  var = w'U w
//
// One warp factors 32 rows of A at a time; everything else is products of tiles. The addresses are
// refined once where the condition, from the pivots, asks for it; what is worse conditioned than
// float32 bears is left to whoever called.
#pragma once

#include "small_read.cuh"

namespace kanerva::cuda {

// Shared memory of a block; kSlots is 32 or 64. Padded with zeros, but for the diagonal of A.
template <int kSlots>
struct SmallRecallMemory {
  static constexpr int kLd = stride_along(kSlots), kSquare = kSlots * kLd, kRow = kSmallChunk * kLd;

  float *A, *V, *inverse, *U;  // kSlots x kSlots, kLd apart; A becomes F'
  float *N, *W;                // kSmallChunk x kSlots: right-hand sides and addresses
  float *reciprocal, *range;   // 1 / F(t, t); the least and the largest pivot of each 32
  float *R, *Z;                // kSlots and kSmallChunk rows of columns, ld apart
  int ld;

  __host__ __device__ SmallRecallMemory(float* memory, int columns)
      : A(memory),
        V(A + kSquare),
        inverse(V + kSquare),
        U(inverse + kSquare),
        N(U + kSquare),
        W(N + kRow),
        reciprocal(W + kRow),
        range(reciprocal + kSlots),
        R(range + 4),
        Z(R + kSlots * stride_across(columns)),
        ld(stride_across(columns)) {}

  static constexpr size_t bytes(int columns) {
    const int64_t wide = stride_across(columns);
    return sizeof(float) *
           size_t(4 * kSquare + 2 * kRow + kSlots + 4 + (kSlots + kSmallChunk) * wide);
  }
};

template <int kSlots>
class SmallRecall {
  using Memory = SmallRecallMemory<kSlots>;
  static constexpr int kLd = Memory::kLd, kHalves = kSlots / 32;

 public:
  // Of memory b, the tiles of queries that share `share` of `shares` has.
  __device__ SmallRecall(const RecallArgs& args, int64_t b, int share, int shares)
      : args_(args),
        b_(b),
        share_(share),
        shares_(shares),
        K_(int(args.n.K)),
        C_(int(args.n.C)),
        tiles_((C_ + 7) / 8),
        warp_(block_thread() >> 5),
        m_(reinterpret_cast<float*>(block_memory()), C_),
        ridge_(float(scalar(args.ridge, b))) {}

  // False, in every thread, when it is too hard or something is not finite; then nothing that was
  // stored counts.
  __device__ bool run() {
    const auto always = [](int) { return true; };
    start_copy(rows_of(args_.mean, b_, 0, 0), K_, C_, m_.R, m_.ld, kSlots, 8 * tiles_, always);
    end_copies();
    if (args_.cov.data != nullptr)
      start_copy(rows_of(args_.cov, b_, 0, 0), K_, K_, m_.U, kLd, kSlots, kSlots, always);
    const int64_t step = int64_t(shares_) * kSmallChunk;
    int64_t first = int64_t(share_) * kSmallChunk;
    start_queries(first);
    wait_for_copies<1>();
    bool good = __syncthreads_and(ridge_ > 0.0f && ridge_ < 1e30f) && invert();
    for (; good && first < args_.n.T; first += step) {
      wait_for_copies<0>();
      __syncthreads();
      solve();
      const bool finite = store(first);
      good = __syncthreads_and(finite);
      start_queries(first + step);
    }
    wait_for_copies<0>();
    return good;
  }

 private:
  __device__ void start_queries(int64_t first) const {
    start_tile(args_.queries, b_, first, args_.n.T, C_, m_.Z, m_.ld, 8 * tiles_);
    end_copies();
  }

  // The inverse of A; false where it is not to be had in float32. Leaves the block synchronised.
  __device__ bool invert() {
    multiply<kHalves, kHalves>(Along{m_.R, m_.ld}, Along{m_.R, m_.ld}, kSlots, kSlots / 8,
                               8 * tiles_, [&](int i, int j, float x, float y) {
                                 if (i == j) x = i < K_ ? x + ridge_ : 1.0f;
                                 if (i == j + 1) y = i < K_ ? y + ridge_ : 1.0f;
                                 store_pair(m_.A + i * kLd + j, x, y);
                               });
    for (int e = block_thread(); e < kSlots * kSlots; e += block_threads())
      m_.V[e / kSlots * kLd + e % kSlots] = e / kSlots == e % kSlots ? 1.0f : 0.0f;
    __syncthreads();
    float* const right = m_.A + kSmallChunk;  // of the first rows: A12, then F21'
    float* const below = m_.V + kSmallChunk * kLd;
    float* const last = m_.A + kSmallChunk * (kLd + 1);
#pragma unroll 1
    for (int half = 0; half < kHalves; ++half) {
      bool good = true;
      if (warp_ == 0) good = factor(half);
      if (half == 1)  // F21 V11, by the other warps
        multiply<1, 1>(
            Across{right, kLd}, Across{m_.V, kLd}, kSmallChunk, kSmallChunk / 8, kSmallChunk,
            [&](int i, int j, float x, float y) { store_pair(below + i * kLd + j, -x, -y); }, 1);
      if (!__syncthreads_and(good)) return false;
      if (warp_ < kHalves)
        solve_in(half == 1                    ? below + kSmallChunk * warp_
                 : warp_ == 0 && kHalves == 2 ? right
                                              : m_.V,
                 half);
      __syncthreads();
      if (half + 1 == kHalves) break;
      multiply<1, 1>(Across{right, kLd}, Across{right, kLd}, kSmallChunk, kSmallChunk / 8,
                     kSmallChunk, [&](int i, int j, float x, float y) {
                       float* a = last + i * kLd + j;
                       store_pair(a, a[0] - x, a[1] - y);
                     });
      __syncthreads();
    }
    const float low = fminf(m_.range[0], m_.range[2 * kHalves - 2]);
    const float high = fmaxf(m_.range[1], m_.range[2 * kHalves - 1]);
    if (!(high <= float(kEasy) * low)) return false;
    refines_ = high > float(kVeryEasy) * low;
    multiply<kHalves, kHalves>(
        Across{m_.V, kLd}, Across{m_.V, kLd}, kSlots, kSlots / 8, kSlots,
        [&](int i, int j, float x, float y) { store_pair(m_.inverse + i * kLd + j, x, y); });
    __syncthreads();
    return true;
  }

  // Factors rows [32 half, 32 half + 32) of A and finds the range of their pivots, by one warp.
  __device__ bool factor(int half) const {
    float pivot = 1.0f;
    const bool good = factor_by_warp(m_.A + half * kSmallChunk * (kLd + 1), kLd, kSmallChunk,
                                     m_.reciprocal + half * kSmallChunk, pivot);
    const bool counts = half * kSmallChunk + lane() < K_;
    float low = counts ? pivot : 1e30f, high = counts ? pivot : 0.0f;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      low = fminf(low, __shfl_xor_sync(0xffffffffu, low, distance));
      high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, distance));
    }
    if (lane() == 0) {
      m_.range[2 * half] = low;
      m_.range[2 * half + 1] = high;
    }
    return good;
  }

  // 32 columns of 32 rows, by one warp, with the factor of that half.
  __device__ void solve_in(float* columns, int half) const {
    solve_column(columns + lane(), kLd, m_.A + half * kSmallChunk * (kLd + 1), kLd, kSmallChunk,
                 m_.reciprocal + half * kSmallChunk, [](int, float) {});
  }

  // W = the addresses of the queries Z, which are lost if they are refined. Leaves the block
  // synchronised.
  __device__ void solve() const {
    right_hand_sides(0.0f);
    multiply<1, 1>(Along{m_.N, kLd}, Along{m_.inverse, kLd}, kSmallChunk, kSlots / 8, kSlots,
                   [&](int i, int j, float x, float y) { store_pair(m_.W + i * kLd + j, x, y); });
    __syncthreads();
    if (!refines_) return;
    multiply<2, 2>(Along{m_.W, kLd}, Across{m_.R, m_.ld}, kSmallChunk, tiles_, kSlots,
                   [&](int i, int j, float x, float y) {
                     float* z = m_.Z + i * m_.ld + j;
                     store_pair(z, z[0] - x, z[1] - y);
                   });
    __syncthreads();
    right_hand_sides(ridge_);
    multiply<1, 1>(Along{m_.N, kLd}, Along{m_.inverse, kLd}, kSmallChunk, kSlots / 8, kSlots,
                   [&](int i, int j, float x, float y) {
                     float* w = m_.W + i * kLd + j;
                     store_pair(w, w[0] + x, w[1] + y);
                   });
    __syncthreads();
  }

  // N = Z R' - ridge W. Leaves the block synchronised.
  __device__ void right_hand_sides(float ridge) const {
    multiply<1, 1>(Along{m_.Z, m_.ld}, Along{m_.R, m_.ld}, kSmallChunk, kSlots / 8, 8 * tiles_,
                   [&](int i, int j, float x, float y) {
                     const float* w = m_.W + i * kLd + j;
                     if (ridge != 0.0f) x -= ridge * w[0], y -= ridge * w[1];
                     store_pair(m_.N + i * kLd + j, x, y);
                   });
    __syncthreads();
  }

  // The results of a tile of queries; whether those of this thread are finite.
  __device__ bool store(int64_t first) const {
    const int count = int(first + kSmallChunk <= args_.n.T ? kSmallChunk : args_.n.T - first);
    const int64_t row = b_ * args_.n.T + first;
    Finite finite;
    float* const weights = static_cast<float*>(args_.weights_out.data) + row * K_;
    each(count, K_, [&](int i, int j) {
      const float w = m_.W[i * kLd + j];
      finite.check(w);
      weights[i * K_ + j] = w;
    });
    if (args_.cov.data == nullptr) return finite.all();
    return store_reads<kSlots>(args_.n, args_.values_out, args_.var_out, b_, first, count,
                               Along{m_.W, kLd}, Across{m_.R, m_.ld}, Along{m_.U, kLd}) &&
           finite.all();
  }

  const RecallArgs& args_;
  const int64_t b_;
  const int share_, shares_;
  const int K_, C_, tiles_, warp_;
  const Memory m_;
  const float ridge_;
  bool refines_ = false;
};

inline SmallReadPlan plan_small(const RecallArgs& args, int team, const Device& device) {
  const Sizes& n = args.n;
  if (n.T < 1 || n.K > n.C) return {};
  const size_t shared =
      n.K <= 32 ? SmallRecallMemory<32>::bytes(int(n.C)) : SmallRecallMemory<64>::bytes(int(n.C));
  return plan_small_read(n, team, shared, device, args.mean, args.cov, args.queries);
}

// Few, for a factor takes many registers.
constexpr int kSmallRecallThreads = 128;

template <int kSlots>
__global__ void __launch_bounds__(kSmallRecallThreads, 3)
    small_recall_kernel(const __grid_constant__ RecallArgs args, int* marks) {
  const int share = int(blockIdx.y), shares = int(gridDim.y);
  const bool done = SmallRecall<kSlots>(args, blockIdx.x, share, shares).run();
  if (block_thread() == 0) marks[blockIdx.x * int64_t(shares) + share] = !done;
}

}  // namespace kanerva::cuda
