// The adjoint of small_adjoint.cuh by a team of blocks, where processors are idle and there are
// more than 32 steps or slots: each block has some of the columns. What these add to X, A A' and dZ
// R' the blocks leave in the workspace, where the owners of bands of steps take it, in the order of
// the blocks; and so do they with what their steps add to dU0.
//
// An owner has rows of M, and so rows of M G' and not of G M': dU0 has only the symmetric part.
#pragma once

#include "small_adjoint.cuh"

namespace kanerva::cuda {

constexpr int kMostAdjointBlocks = 4;  // of a memory

// The blocks of 2 to 4 that own rows, each 16 or 32 of them.
__host__ __device__ constexpr int adjoint_owners(int blocks) { return blocks == 4 ? 4 : 2; }

// What the blocks of a memory leave for each other, in the workspace.
struct AdjointExchange {
  static constexpr int kSquare = 64 * 64;
  static constexpr size_t bytes(int blocks) {
    return sizeof(float) * size_t(3 * blocks + adjoint_owners(blocks)) * kSquare;
  }
  float* data;
  int blocks;
  // Of a block; 0: X, 1: A A', 2: dZ R'.
  __device__ float* sum(int block, int which) const { return data + (3 * block + which) * kSquare; }
  __device__ float* cov(int owner) const { return data + (3 * blocks + owner) * kSquare; }
};

class SmallAdjointTeam : SmallAdjoint<64> {
  using Base = SmallAdjoint<64>;
  static constexpr int kSize = 64;

 public:
  // By the blocks of blockIdx.z, each of `width` columns, `panel` at a time.
  __device__ SmallAdjointTeam(const BayesWriteBackwardArgs& args, int64_t b, int panel, int width,
                              TeamBarrier& barrier, float* exchange)
      : Base(args, b, panel, block_rank() * width, min(int(args.n.C), (block_rank() + 1) * width)),
        barrier_(barrier),
        exchange_{exchange, blocks()},
        owners_(adjoint_owners(blocks())),
        rows_(block_rank() < owners_ ? kSize / owners_ : 0),
        row_(block_rank() * rows_) {}

  // As of one block. False in the blocks that found something.
  __device__ bool run() {
    arrive_in_cluster();
    const bool easy = begin(row_, rows_);
    if (easy) {
      for (int first = begin_; first < end_; first += panel_) {
        const bool last = first + panel_ >= end_;
        columns(first, [&](float* sum) {
          const int which = sum == m_.X ? 0 : sum == m_.AA ? 1 : 2;
          float* const left = exchange_.sum(block_rank(), which);
          return [=](int i, int j, float x, float y) {
            float* const own = sum + i * kLd + j;
            if (first > begin_) x += own[0], y += own[1];
            if (last) {
              store_pair(left + i * kSize + j, x, y);
            } else {
              store_pair(own, x, y);
            }
          };
        });
        if (!last) start_panel(first + panel_);
      }
      symmetrise_gradient();
      band(Along{m_.G, kLd}, Along{m_.gU, kLd}, row_, rows_,
           [&](int t, int k, float x, float y) { store_pair(m_.V + t * kLd + k, x, y); });
    }
    if (team_barrier(barrier_, 0, !easy)) return false;
    if (rows_ > 0) slots();
    team_barrier(barrier_, 1, false);
    store_cov();
    return __syncthreads_and(finite_.all());
  }

 private:
  // sums[m] += the sum of what part(m, 0), part(m, 1) and so on, of `count` of them, have at an
  // element and the three after it, in this order. The loads go on side by side.
  template <int kSums, class Part>
  __device__ static void add_up(float (&sums)[kSums][4], int count, int at, Part part) {
    float4 x[kSums][kMostAdjointBlocks];
#pragma unroll
    for (int m = 0; m < kSums; ++m)
#pragma unroll
      for (int q = 0; q < kMostAdjointBlocks; ++q)
        x[m][q] = *reinterpret_cast<const float4*>(part(m, min(q, count - 1)) + at);
#pragma unroll
    for (int m = 0; m < kSums; ++m)
#pragma unroll
      for (int q = 0; q < kMostAdjointBlocks; ++q) {
        const bool is_there = q < count;
        sums[m][0] += is_there ? x[m][q].x : 0.0f;
        sums[m][1] += is_there ? x[m][q].y : 0.0f;
        sums[m][2] += is_there ? x[m][q].z : 0.0f;
        sums[m][3] += is_there ? x[m][q].w : 0.0f;
      }
  }

  // f(i, j) for every fourth element of the own rows.
  template <class F>
  __device__ void fours(F f) const {
    for (int e = block_thread(); e < rows_ * kSize / 4; e += block_threads())
      f(row_ + e / (kSize / 4), e % (kSize / 4) * 4);
  }

  // dn and dW of the own steps, and what they add to dU0.
  __device__ void slots() {
    const bool evidence = gl_ != 0.0f;
    fours([&](int t, int k) {
      const int from = t * kSize + k, at = t * kLd + k;
      float sums[3][4] = {};
      const auto sum = [&](int which, int q) {  // without A A' X again
        return exchange_.sum(q, which == 1 && !evidence ? 0 : which);
      };
      add_up(sums, blocks(), from, sum);
      const auto& [x, a, z] = sums;
      *reinterpret_cast<float4*>(m_.AA + at) = {a[0], a[1], a[2], a[3]};
      *reinterpret_cast<float4*>(m_.dZR + at) = {z[0], z[1], z[2], z[3]};
#pragma unroll
      for (int r = 0; r < 4; ++r) change(t, k + r, x[r], m_.V[at + r]);
    });
    __syncthreads();
    band(Along{m_.M, kLd}, Along{m_.G, kLd}, row_, rows_, [&](int i, int j, float x, float y) {
      set_inner(i, j, x);
      set_inner(i, j + 1, y);
    });
    band(Along{m_.V, kLd}, Along{m_.U, kLd}, row_, rows_, [&](int t, int k, float x, float y) {
      store_weight(t, k, x);
      store_weight(t, k + 1, y);
    });
    __syncthreads();
    band(Along{m_.AA, kLd}, Across{m_.W, kLd}, row_, rows_, [&](int t, int k, float x, float y) {
      float* const to = m_.X + t * kLd + k;
      store_pair(to, to[0] + x, to[1] + y);
    });
    __syncthreads();
    // Above the diagonal, and mirrored.
    const Across W{m_.W + row_ * kLd, kLd}, X{m_.X + row_ * kLd, kLd};
    float* const cov = exchange_.cov(block_rank());
    constexpr int kDown = kSize / (16 * kPart);
    for (int item = block_thread() >> 5; item < 8; item += block_threads() >> 5) {
      const int i0 = item % kDown * 16 * kPart, j0 = item / kDown * 8 * kPart;
      if (j0 + 8 * kPart <= i0) continue;
      Tiles<kPart, kPart> sum;
      sum.add(W, i0, X, j0, rows_);
      sum.add(X, i0, W, j0, rows_);
      const auto set = [&](int i, int j, float x) {
        if (j >= i) cov[i * kSize + j] = cov[j * kSize + i] = x;
      };
      sum.each(i0, j0, [&](int i, int j, float x, float y) {
        set(i, j, x);
        set(i, j + 1, y);
      });
    }
  }

  // dU0, of the own rows.
  __device__ void store_cov() {
    float* const d_cov = static_cast<float*>(args_.d_cov.data) + b_ * K_ * K_;
    fours([&](int i, int j) {
      if (i >= K_) return;
      float sum[1][4] = {};
      add_up(sum, owners_, i * kSize + j, [&](int, int q) { return exchange_.cov(q); });
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float d = fmaf(0.5f, sum[0][r], m_.gU[i * kLd + j + r]);
        finite_.check(d);
        if (j + r < K_) d_cov[i * K_ + j + r] = d;
      }
    });
  }

  TeamBarrier& barrier_;
  const AdjointExchange exchange_;
  const int owners_, rows_, row_;  // how many there are; the own rows, from which on
};

}  // namespace kanerva::cuda
