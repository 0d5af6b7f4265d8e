// The write of a memory of more than 64 slots by a cluster of 2, 4 or 8 blocks, in float32, for
// bayes_write: the algebra of small_write.cuh in chunks of 32 steps. Each block has some rows of
// the covariance, which is symmetric, and some columns of the mean, in its shared memory.
//
//   own columns of X = W U;  own part of S = X W'     | barrier: the parts are added up by each
//   S + diag(n) = F F' by each;  own columns of [P E] = F^-1 [X Z - W R]
//                                                     | barrier: each takes all columns of P
//   R += P'E,  U <- (U - P'P) / b
//
// The parts are added in the order of the blocks, so that all find the same F, and whether it is
// too hard; what is, is left to whoever called. U is updated by sums in one order on either side of
// the diagonal: it stays symmetric to the last bit.
#pragma once

#include "small_write.cuh"

namespace kanerva::cuda {

// Slots that blocks of a cluster share out, each as many: whole tiles of 32 rows and 8 columns.
__host__ __device__ constexpr int slots_in_cluster(int64_t K, int blocks) {
  const int whole = blocks == kMostInCluster ? 64 : 32;
  return int((K + whole - 1) / whole) * whole;
}

// Columns of a block.
__host__ __device__ constexpr int columns_in_cluster(int64_t C, int blocks) {
  return int((C + 8 * blocks - 1) / (8 * blocks)) * 8;
}

// Shared memory of a block, padded with zeros.
struct ClusterMemory {
  static constexpr int kFactor = stride_along(kSmallChunk);

  int slots, slab, along, across, ld, slab_ld;
  float *U, *W;       // slab and kSmallChunk rows, along apart
  float *X, *Y;       // kSmallChunk rows of slab, slab_ld apart, of chunks in turn
  float* P;           // kSmallChunk rows of slots, across apart
  float *part, *F;    // of S, and F': kFactor apart
  float* numbers;     // n_t and b_t, of chunks in turn
  float* reciprocal;  // 1 / F(t, t)
  float *D, *R;       // kSmallChunk and slots rows, ld apart

  __host__ __device__ ClusterMemory(float* memory, int64_t K, int columns, int blocks)
      : slots(slots_in_cluster(K, blocks)),
        slab(slots / blocks),
        along(stride_along(slots)),
        across(stride_across(slots)),
        ld(stride_across(columns)),
        slab_ld(stride_across(slab)) {
    const auto take = [&](int64_t rows, int row) {
      float* const found = memory;
      memory += rows * row;
      return found;
    };
    U = take(slab, along);
    W = take(kSmallChunk, along);
    X = take(kSmallChunk, slab_ld);
    Y = take(kSmallChunk, slab_ld);
    P = take(kSmallChunk, across);
    part = take(kSmallChunk, kFactor);
    F = take(kSmallChunk, kFactor);
    numbers = take(4, kSmallChunk);
    reciprocal = take(kSmallChunk, 1);
    D = take(kSmallChunk, ld);
    R = take(slots, ld);
  }

  static size_t bytes(int64_t K, int64_t C, int blocks) {
    const int64_t slots = slots_in_cluster(K, blocks), slab = slots / blocks;
    const int64_t ld = stride_across(columns_in_cluster(C, blocks));
    const int64_t along = stride_along(int(slots)), across = stride_across(int(slots));
    return sizeof(float) *
           size_t((slab + kSmallChunk) * along + (slots + kSmallChunk) * ld +
                  kSmallChunk * (2 * stride_across(int(slab)) + across + 2 * kFactor + 5));
  }
};

class ClusterWrite {
 public:
  __device__ ClusterWrite(const BayesWriteArgs& args, int64_t b)
      : args_(args),
        b_(b),
        width_(columns_in_cluster(args.n.C, blocks())),
        m_(reinterpret_cast<float*>(block_memory()), args.n.K, width_, blocks()),
        K_(int(args.n.K)),
        C_(int(args.n.C)),
        slot_(block_rank() * m_.slab),
        column_(block_rank() * width_),
        columns_(max(0, min(width_, C_ - column_))),
        tiles_((columns_ + 7) / 8),
        slabs_(1.0f / float(m_.slab)),
        warp_(block_thread() >> 5),
        warps_(block_threads() >> 5),
        is_last_(warp_ == warps_ - 1) {}

  // False, in every thread of the first block, where it is too hard; then nothing that was stored
  // counts.
  __device__ bool run() {
    const int64_t T = args_.n.T;
    const auto always = [](int) { return true; };
    start_copy(rows_of(args_.cov, b_, slot_, 0), own_slots(), K_, m_.U, m_.along, m_.slab, m_.slots,
               always);
    start_weights(0);
    start_copy(rows_of(args_.mean, b_, 0, column_), K_, columns_, m_.R, m_.ld, m_.slots, 8 * tiles_,
               always);
    start_values(0);
    float squares = 0.0f;
    double logs = 0.0;
    bool hard = false, has_met = false;  // the same in all threads
    for (first_ = 0; first_ < T; first_ += kSmallChunk) {
      const bool is_last = first_ + kSmallChunk >= T;
      const bool is_even = first_ / kSmallChunk % 2 == 0;
      steps_ = steps_from(first_);
      X_ = is_even ? m_.X : m_.Y;
      noise_ = m_.numbers + (is_even ? 0 : 2 * kSmallChunk);
      decay_ = noise_ + kSmallChunk;
      if (first_ == 0 && is_last_) hard = !load_numbers(0, m_.numbers);
      wait_for_copies<1>();  // of the values
      hard = __syncthreads_or(hard);
      if (first_ == 0) {
        if (!hard) symmetrise_rows();
        __syncthreads();
      }
      if (hard) break;  // in all blocks, here and below
      make_part();
      sync_cluster();  // from here on all blocks are there
      has_met = true;
      add_parts();
      wait_for_copies<0>();
      __syncthreads();
      if (warp_ == 0) {
        hard = !factor(logs);
      } else {
        innovations();
        // Meanwhile.
        if (is_last_ && !is_last)
          hard = !load_numbers(first_ + kSmallChunk, m_.numbers + (is_even ? 2 * kSmallChunk : 0));
      }
      hard = __syncthreads_or(hard);
      if (hard) break;
      if (!is_last) start_weights(first_ + kSmallChunk);
      squares += solve();
      sync_cluster();
      gather();
      __syncthreads();
      update();
      __syncthreads();
      if (!is_last) start_values(first_ + kSmallChunk);
    }
    wait_for_copies<0>();
    const double own = -0.5 * block_sum(double(squares) + double(columns_) * logs);
    if (!hard) store_state();
    if (!has_met) sync_cluster();
    // Nobody ends before all have taken P.
    if (block_thread() == 0) store_in_cluster(&head().partials[0][block_rank()], 0, own);
    sync_cluster();
    if (block_rank() > 0) return true;
    double evidence = 0.0;
    for (int i = 0; i < blocks(); ++i) evidence += head().partials[0][i];
    // Values that are not finite, or whose squares overflow, show here.
    if (hard || !(evidence < kInfinite && evidence > -kInfinite)) return false;
    if (block_thread() == 0) store_scalar(args_.log_evidence, b_, 0, evidence);
    return true;
  }

 private:
  __device__ int own_slots() const { return max(0, min(m_.slab, K_ - slot_)); }
  __device__ int steps_from(int64_t first) const {
    return int(first + kSmallChunk <= args_.n.T ? kSmallChunk : args_.n.T - first);
  }

  __device__ void start_weights(int64_t first) const {
    start_copy(rows_of(args_.weights, b_, first, 0), steps_from(first), K_, m_.W, m_.along,
               kSmallChunk, m_.slots, [&](int t) { return keeps_step(args_.mask, b_, first + t); });
    end_copies();
  }

  __device__ void start_values(int64_t first) const {
    start_copy(rows_of(args_.values, b_, first, column_), steps_from(first), columns_, m_.D, m_.ld,
               kSmallChunk, 8 * tiles_,
               [&](int t) { return keeps_step(args_.mask, b_, first + t); });
    end_copies();
  }

  // By the last warp.
  __device__ bool load_numbers(int64_t first, float* to) const {
    unsigned kept;
    return kanerva::cuda::load_numbers(args_, b_, first, steps_from(first), to, to + kSmallChunk,
                                       kept);
  }

  // The rows of U that are here become those of its symmetric part.
  __device__ void symmetrise_rows() const {
    constexpr int kTogether = 8;  // loads
    const Rows cov = rows_of(args_.cov, b_, 0, slot_);
    const int own = own_slots(), start = 4 * warp_ + (lane() >> 3);
    // Of tiles of 8 columns and, for each warp, four rows.
    int j = lane() & 7, p = start;
    while (j < own) {
      float across[kTogether];
      int at[kTogether];
#pragma unroll
      for (int q = 0; q < kTogether; ++q) {
        const bool is_there = j < own && p < K_;
        at[q] = is_there ? j * m_.along + p : -1;
        across[q] = is_there ? cov.data[p * cov.row + j] : 0.0f;
        p += 4 * warps_;
        if (p >= K_) p = start, j += 8;
      }
#pragma unroll
      for (int q = 0; q < kTogether; ++q)
        if (at[q] >= 0) m_.U[at[q]] = 0.5f * (m_.U[at[q]] + across[q]);
    }
  }

  // The own columns of X and part of S. Leaves the block unsynchronised.
  __device__ void make_part() const {
    float* const X = X_;
    multiply<1, 1>(
        Along{m_.W, m_.along}, Along{m_.U, m_.along}, kSmallChunk, m_.slab / 8, m_.slots,
        [&](int i, int j, float x, float y) { store_pair(X + i * m_.slab_ld + j, x, y); });
    __syncthreads();
    multiply<1, 1>(
        Along{X, m_.slab_ld}, Along{m_.W + slot_, m_.along}, kSmallChunk, kSmallChunk / 8, m_.slab,
        [&](int i, int j, float x, float y) { store_pair(m_.part + i * m_.kFactor + j, x, y); });
  }

  // S + diag(n), the same in every block.
  __device__ void add_parts() const {
    for (int e = block_thread(); e < kSmallChunk * kSmallChunk / 4; e += block_threads()) {
      const int i = e / (kSmallChunk / 4), j = e % (kSmallChunk / 4) * 4, at = i * m_.kFactor + j;
      float4 x[kMostInCluster];
#pragma unroll
      for (int q = 0; q < kMostInCluster; ++q)
        x[q] =
            load_from_cluster(reinterpret_cast<const float4*>(m_.part + at), min(q, blocks() - 1));
      float sum[4] = {};
#pragma unroll
      for (int q = 0; q < kMostInCluster; ++q) {
        const bool is_there = q < blocks();
        sum[0] += is_there ? x[q].x : 0.0f;
        sum[1] += is_there ? x[q].y : 0.0f;
        sum[2] += is_there ? x[q].z : 0.0f;
        sum[3] += is_there ? x[q].w : 0.0f;
      }
      if (i >= j && i < j + 4) sum[i - j] += noise_[i];
      *reinterpret_cast<float4*>(m_.F + at) = {sum[0], sum[1], sum[2], sum[3]};
    }
  }

  __device__ bool factor(double& logs) const {
    const bool keeps = lane() < steps_ && keeps_step(args_.mask, b_, first_ + lane());
    return factor_easy(m_.F, m_.kFactor, steps_, __ballot_sync(0xffffffffu, keeps), noise_, decay_,
                       m_.reciprocal, logs);
  }

  // D = Z - W R, of the own columns: by all warps but the first.
  __device__ void innovations() const {
    multiply<2, 2>(
        Along{m_.W, m_.along}, Across{m_.R, m_.ld}, kSmallChunk, tiles_, m_.slots,
        [&](int i, int j, float x, float y) {
          float* d = m_.D + i * m_.ld + j;
          store_pair(d, d[0] - x, d[1] - y);
        },
        1);
  }

  // The own columns of P and E in the place of X and D, one per lane; this thread's share of the
  // squares of E.
  __device__ float solve() const {
    float squares = 0.0f;
    const int strips = (m_.slab + 31) / 32;
    for (int c = warp_; c < strips + (tiles_ + 3) / 4; c += warps_) {
      const bool is_value = c >= strips;
      const int j = (is_value ? c - strips : c) * 32 + lane();
      if (j >= (is_value ? columns_ : m_.slab)) continue;
      float own = 0.0f;  // the same of an address, which does not count
      solve_column((is_value ? m_.D : X_) + j, is_value ? m_.ld : m_.slab_ld, m_.F, m_.kFactor,
                   steps_, m_.reciprocal,
                   [&](int t, float x) { own = fmaf(decay_[t] * x, x, own); });
      if (is_value) squares += own;
    }
    return squares;
  }

  // All columns of P, by a warp four rows at a time.
  __device__ void gather() const {
    constexpr int kTogether = 4;
    for (int k = 4 * lane(); k < m_.slots; k += 128) {
      const int rank = int((float(k) + 0.5f) * slabs_);  // k / slab
      const float* const own = X_ + k - rank * m_.slab;
      for (int t = warp_; t < kSmallChunk; t += kTogether * warps_) {
        float4 x[kTogether];
#pragma unroll
        for (int q = 0; q < kTogether; ++q)
          x[q] = load_from_cluster(
              reinterpret_cast<const float4*>(own + (t + q * warps_) * m_.slab_ld), rank);
#pragma unroll
        for (int q = 0; q < kTogether; ++q)
          *reinterpret_cast<float4*>(m_.P + (t + q * warps_) * m_.across + k) = x[q];
      }
    }
  }

  // The state after the chunk.
  __device__ void update() const {
    multiply<2, 2>(Across{m_.P, m_.across}, Across{m_.D, m_.ld}, m_.slots, tiles_, kSmallChunk,
                   [&](int i, int j, float x, float y) {
                     float* r = m_.R + i * m_.ld + j;
                     store_pair(r, r[0] + x, r[1] + y);
                   });
    const float scale = 1.0f / decay_[steps_ - 1];
    const int strips = (m_.slots + 127) / 128;
    for (int item = warps_ - 1 - warp_; item < m_.slab / 4 * strips; item += warps_) {
      const int i = item / strips * 4, j = item % strips * 128 + 4 * lane();
      if (j >= m_.slots) continue;
      float sum[4][4] = {};
#pragma unroll 8
      for (int t = 0; t < kSmallChunk; ++t) {
        const float* const row = m_.P + t * m_.across;
        const auto a = *reinterpret_cast<const float4*>(row + slot_ + i);
        const auto b = *reinterpret_cast<const float4*>(row + j);
        const float of_row[4] = {a.x, a.y, a.z, a.w}, of_column[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int r = 0; r < 4; ++r)
#pragma unroll
          for (int c = 0; c < 4; ++c) sum[r][c] = fmaf(of_row[r], of_column[c], sum[r][c]);
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        auto* const u = reinterpret_cast<float4*>(m_.U + (i + r) * m_.along + j);
        const float4 x = *u;
        *u = {(x.x - sum[r][0]) * scale, (x.y - sum[r][1]) * scale, (x.z - sum[r][2]) * scale,
              (x.w - sum[r][3]) * scale};
      }
    }
  }

  __device__ void store_state() const {
    const auto nothing = [](float) {};
    float* const mean = static_cast<float*>(args_.mean_out.data) + b_ * K_ * args_.n.C;
    store_rows(mean + column_, args_.n.C, K_, columns_, m_.R, m_.ld, nothing);
    float* const cov = static_cast<float*>(args_.cov_out.data) + b_ * K_ * K_;
    store_rows(cov + int64_t(slot_) * K_, K_, own_slots(), K_, m_.U, m_.along, nothing);
  }

  const BayesWriteArgs& args_;
  const int64_t b_;
  const int width_;
  const ClusterMemory m_;
  const int K_, C_, slot_, column_, columns_, tiles_;
  const float slabs_;
  const int warp_, warps_;
  const bool is_last_;  // of the warps
  int64_t first_ = 0;   // of the chunk's steps
  int steps_ = 0;       // of the chunk
  float *X_ = nullptr, *noise_ = nullptr, *decay_ = nullptr;
};

}  // namespace kanerva::cuda
