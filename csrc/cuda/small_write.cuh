// The write of a memory of at most 64 slots by one block, in float32, for bayes_write and, with
// reads after every step, for causal_scan: the algebra of write_chunk.cuh in chunks of 32 steps,
// with everything in shared memory and registers.
//
//   X = W U,  S = X W' + diag(n) = F F',  [P E] = F^-1 [X Z - W R],  R += P'E,  U <- (U - P'P) / b
//   A = tril(Q P'),  reads = Q R + A E,  read_var_t = (q'U q - |A_t|^2) / b_t,  of the old R and U
//
// Products are tiles in tensor cores (fragments.cuh). One warp factors S, a column per lane, while
// the others multiply by R and U; then a lane solves for a column of P or E at a time. The
// addresses, values and queries of the next chunk are copied meanwhile. What is harder than float32
// bears is left to whoever called.
#pragma once

#include "small_factor.cuh"
#include "write_block.cuh"

namespace kanerva::cuda {

// Shared memory of a block; kSlots is 32 or 64, the matrices are padded with zeros. What is as wide
// as the memory is kAlong or kAcross apart, what is as wide as the columns ld.
template <int kSlots>
struct SmallMemory {
  static constexpr int kAlong = stride_along(kSlots), kAcross = stride_across(kSlots);
  static constexpr int kFactor = stride_along(kSmallChunk);

  float *U, *W;                       // kSlots and kSmallChunk rows, kAlong apart
  float* X;                           // kSmallChunk rows, kAcross apart; then P
  float* F;                           // S, then F': row t has F(t, t) on, kFactor apart
  float *noise, *decay, *reciprocal;  // n_t, b_t and 1 / F(t, t)
  float *D, *R;                       // kSmallChunk and kSlots rows; D: Z, then Z - W R, then E
  float *Q, *A, *O, *var;             // only with reads: Q like W, A like F, Q R like D, q'U q
  int ld;

  // Laid out from `memory` on, which the host leaves null.
  __host__ __device__ SmallMemory(float* memory, int columns)
      : U(memory),
        W(U + kSlots * kAlong),
        X(W + kSmallChunk * kAlong),
        F(X + kSmallChunk * kAcross),
        noise(F + kSmallChunk * kFactor),
        decay(noise + kSmallChunk),
        reciprocal(decay + kSmallChunk),
        D(reciprocal + kSmallChunk),
        R(D + kSmallChunk * stride_across(columns)),
        Q(R + kSlots * stride_across(columns)),
        A(Q + kSmallChunk * kAlong),
        O(A + kSmallChunk * kFactor),
        var(O + kSmallChunk * stride_across(columns)),
        ld(stride_across(columns)) {}

  static constexpr size_t bytes(int columns, bool reads) {
    const int64_t wide = stride_across(columns);  // of any memory, to learn whether it fits
    const int64_t write =
        (kSlots + kSmallChunk) * (kAlong + wide) + kSmallChunk * (kAcross + kFactor + 3);
    return sizeof(float) *
           size_t(write + (reads ? kSmallChunk * (kAlong + kFactor + wide + 1) : 0));
  }
};

constexpr float kLargestFloat = 3.40282347e38f;

// The least product of the decays of a chunk: its reciprocal, by which a covariance grows, must not
// overflow.
constexpr double kLeastDecay = 1e-30;

// The numbers of steps of row b from `first` on, by one warp, a step per lane; steps that the mask
// leaves out and those beyond the last have noise one. `kept` has a bit for each of the others.
// False in a lane whose noise or decay is out of its domain or too small for float32.
template <class Args>
__device__ inline bool load_numbers(const Args& args, int64_t b, int64_t first, int steps,
                                    float* noise, float* decay, unsigned& kept) {
  const int t = lane();
  const bool keeps = t < steps && keeps_step(args.mask, b, first + t);
  kept = __ballot_sync(0xffffffffu, keeps);
  const double v = keeps ? scalar(args.noise_var, b, first + t) : 1.0;
  double g = keeps && args.decay.data != nullptr ? scalar(args.decay, b, first + t) : 1.0;
  const bool valid = v > 0.0 && v <= kLargestNoise && g > 0.0 && g <= 1.0;
  if (args.decay.data != nullptr) {
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const double before = __shfl_up_sync(0xffffffffu, g, distance);
      if (t >= distance) g *= before;
    }
  }
  noise[t] = keeps ? float(v * g) : 1.0f;
  decay[t] = float(g);
  return valid && g >= kLeastDecay;
}

// S becomes its factor, by one warp; gives the lane's pivot. False, in every lane, where S is
// harder than float32 bears.
__device__ inline bool factor_easy(float* S, int ld, int steps, const float* noise,
                                   float* reciprocal, float& pivot) {
  const int j = lane();
  const float hardness = S[j * ld + j] / noise[j] - 1.0f;
  pivot = 1.0f;
  if (!__all_sync(0xffffffffu, hardness <= float(kHardForFloat32Factors))) return false;
  return factor_by_warp(S, ld, steps, reciprocal, pivot);
}

// The same; `logs` grows by what the lane's step adds to the log evidence of a column.
__device__ inline bool factor_easy(float* S, int ld, int steps, unsigned kept, const float* noise,
                                   const float* decay, float* reciprocal, double& logs) {
  const int j = lane();
  float pivot;
  const bool good = factor_easy(S, ld, steps, noise, reciprocal, pivot);
  if (kept >> j & 1) logs += double(logf(pivot)) - double(logf(decay[j])) + kLog2Pi;
  return good;
}

// What the writes of columns of an item have in common, whose shared memory is a Memory: copies.
template <int kSlots, class Args, class Memory>
class SmallColumns {
 protected:
  static constexpr int kAlong = Memory::kAlong, kAcross = Memory::kAcross;
  static constexpr int kFactor = Memory::kFactor;
  static constexpr int kHalves = kSlots / 32;
  static constexpr bool kHasReads = kReads<Args>;

  __device__ SmallColumns(const Args& args, const Item& item, const ColumnBlock& columns)
      : args_(args),
        item_(item),
        columns_(columns),
        m_(reinterpret_cast<float*>(block_memory()), columns.count),
        K_(int(args.n.K)),
        tiles_((columns.count + 7) / 8),
        warp_(block_thread() >> 5),
        warps_(block_threads() >> 5) {}

  __device__ int steps_from(int64_t passed) const {
    return int(passed + kSmallChunk <= item_.steps ? kSmallChunk : item_.steps - passed);
  }

  // Starts the copies of the state and of the first steps, in two groups: the covariance and the
  // addresses, then the rest.
  __device__ void start_item() const {
    const auto always = [](int) { return true; };
    start_copy(rows_of(args_.cov, item_.state, 0, 0), K_, K_, m_.U, kAlong, kSlots, kSlots, always);
    start_weights(0);
    start_copy(rows_of(args_.mean, item_.state, 0, columns_.first), K_, columns_.count, m_.R, m_.ld,
               kSlots, 8 * tiles_, always);
    start_values(0);
  }

  // Starts the copy of the addresses from step `passed` of the item on.
  __device__ void start_weights(int64_t passed) const {
    const int64_t first = item_.first + passed;
    start_copy(rows_of(args_.weights, item_.row, first, 0), steps_from(passed), K_, m_.W, kAlong,
               kSmallChunk, kSlots,
               [&](int t) { return keeps_step(args_.mask, item_.row, first + t); });
    end_copies();
  }

  // The same of the values and queries.
  __device__ void start_values(int64_t passed) const {
    const int64_t first = item_.first + passed;
    const int steps = steps_from(passed);
    start_copy(rows_of(args_.values, item_.row, first, columns_.first), steps, columns_.count, m_.D,
               m_.ld, kSmallChunk, 8 * tiles_,
               [&](int t) { return keeps_step(args_.mask, item_.row, first + t); });
    if constexpr (kHasReads)
      start_copy(rows_of(args_.queries, item_.row, first, 0), steps, K_, m_.Q, kAlong, kSmallChunk,
                 kSlots, [](int) { return true; });
    end_copies();
  }

  // q'U q of 16 queries from i0 on, by one warp.
  template <int kTogether = 1>
  __device__ void prior_variances(int i0) const {
    quadratic_forms<kSlots, kTogether>(Along{m_.Q, kAlong}, i0, Along{m_.U, kAlong},
                                       [&](int t, float x) { m_.var[t] = x; });
  }

  __device__ void store_state() const {
    const int64_t C = args_.n.C;
    const auto nothing = [](float) {};
    float* const mean = static_cast<float*>(args_.mean_out.data) + item_.state * K_ * C;
    store_rows(mean + columns_.first, C, K_, columns_.count, m_.R, m_.ld, nothing);
    if (columns_.index != 0) return;
    float* const cov = static_cast<float*>(args_.cov_out.data) + item_.state * K_ * K_;
    store_rows(cov, K_, K_, K_, m_.U, kAlong, nothing);
  }

  const Args& args_;
  const Item& item_;
  const ColumnBlock& columns_;
  const Memory m_;
  const int K_, tiles_, warp_, warps_;
  int64_t first_ = 0;  // of the chunk's steps
  int steps_ = 0;      // of the chunk
};

// The write of columns of an item.
template <int kSlots, class Args>
class SmallWrite : SmallColumns<kSlots, Args, SmallMemory<kSlots>> {
  using Base = SmallColumns<kSlots, Args, SmallMemory<kSlots>>;
  using Base::args_, Base::columns_, Base::first_, Base::item_, Base::m_, Base::steps_;
  using Base::kAcross, Base::kAlong, Base::kFactor, Base::kHalves, Base::kHasReads;
  using Base::prior_variances, Base::store_state, Base::tiles_, Base::warp_, Base::warps_;
  using Base::start_item, Base::start_values, Base::start_weights, Base::steps_from;

 public:
  __device__ SmallWrite(const Args& args, const Item& item, const ColumnBlock& columns)
      : Base(args, item, columns) {}

  // False, in every thread, where it is too hard; then nothing that was stored counts, and the
  // state is not stored. Leaves the block synchronised.
  __device__ bool run(double& evidence) {
    const int64_t T = item_.steps;
    start_item();
    float squares = 0.0f;
    double logs = 0.0;
    bool hard = false;
    for (int64_t passed = 0; passed < T; passed += kSmallChunk) {
      const bool is_last = passed + kSmallChunk >= T;
      first_ = item_.first + passed;
      steps_ = steps_from(passed);
      unsigned kept = 0;
      if (warp_ == 0) {
        hard = !load_numbers(args_, item_.row, first_, steps_, m_.noise, m_.decay, kept) || hard;
      }
      wait_for_copies<1>();  // of the values
      hard = __syncthreads_or(hard);
      if (hard) break;
      if (passed == 0) {
        symmetrise_square<kSlots>(m_.U, kAlong);
        __syncthreads();
      }
      system();
      if (warp_ == 0) {
        hard = !factor_easy(m_.F, kFactor, steps_, kept, m_.noise, m_.decay, m_.reciprocal, logs);
      } else {
        innovations();
      }
      hard = __syncthreads_or(hard);
      if (hard) break;
      if (!is_last) start_weights(passed + kSmallChunk);
      squares += solve();
      __syncthreads();
      if constexpr (kHasReads) {
        mix();
        __syncthreads();
      }
      hard = !update();
      __syncthreads();
      if (!is_last) start_values(passed + kSmallChunk);
    }
    wait_for_copies<0>();  // before its memory is used for something else
    evidence = -0.5 * block_sum(double(squares) + double(columns_.count) * logs);
    hard = __syncthreads_or(hard);
    // Values that are not finite, or whose squares overflow, show in the evidence.
    if (hard || !(evidence < kInfinite && evidence > -kInfinite)) return false;
    store_state();
    return true;
  }

 private:
  // S. Leaves the block synchronised, and what was copied there for all.
  __device__ void system() const {
    multiply<1, 1>(  // U is symmetric
        Along{m_.W, kAlong}, Along{m_.U, kAlong}, kSmallChunk, kSlots / 8, kSlots,
        [&](int i, int j, float x, float y) { store_pair(m_.X + i * kAcross + j, x, y); });
    __syncthreads();
    multiply<1, 1>(Along{m_.X, kAcross}, Along{m_.W, kAlong}, kSmallChunk, kSmallChunk / 8, kSlots,
                   [&](int i, int j, float x, float y) {
                     if (i == j) x += m_.noise[i];
                     if (i == j + 1) y += m_.noise[i];
                     store_pair(m_.F + i * kFactor + j, x, y);
                   });
    wait_for_copies<0>();
    __syncthreads();
  }

  // D = Z - W R and, with reads, Q R and q'U q: by all warps but the first.
  __device__ void innovations() const {
    multiply<2, 2>(
        Along{m_.W, kAlong}, Across{m_.R, m_.ld}, kSmallChunk, tiles_, kSlots,
        [&](int i, int j, float x, float y) {
          float* d = m_.D + i * m_.ld + j;
          store_pair(d, d[0] - x, d[1] - y);
        },
        1);
    if constexpr (kHasReads) {
      multiply<2, 2>(
          Along{m_.Q, kAlong}, Across{m_.R, m_.ld}, kSmallChunk, tiles_, kSlots,
          [&](int i, int j, float x, float y) { store_pair(m_.O + i * m_.ld + j, x, y); }, 1);
      if (columns_.index == 0 && warp_ <= 2) prior_variances(16 * (warp_ - 1));
    }
  }

  // P and E in the place of X and D, a column per lane; this thread's share of the squares of E.
  __device__ float solve() const {
    float squares = 0.0f;
    for (int c = warp_; c < kHalves + (tiles_ + 3) / 4; c += warps_) {
      const bool is_value = c >= kHalves;
      const int j = (is_value ? c - kHalves : c) * 32 + lane();
      if (is_value && j >= columns_.count) continue;
      float* const column = (is_value ? m_.D : m_.X) + j;
      float own = 0.0f;  // the same of an address, which does not count
      float& sum = kLoadsAhead ? own : squares;
      solve_column(column, is_value ? m_.ld : kAcross, m_.F, kFactor, steps_, m_.reciprocal,
                   [&](int t, float x) {
                     if (kLoadsAhead || is_value) sum = fmaf(m_.decay[t] * x, x, sum);
                   });
      if (kLoadsAhead && is_value) squares += own;
    }
    return squares;
  }

  // A
  __device__ void mix() const {
    multiply<1, 1>(Along{m_.Q, kAlong}, Along{m_.X, kAcross}, kSmallChunk, kSmallChunk / 8, kSlots,
                   [&](int i, int j, float x, float y) {
                     store_pair(m_.A + i * kFactor + j, j <= i ? x : 0.0f, j < i ? y : 0.0f);
                   });
  }

  // The reads, if there are any, and the state after the chunk; whether this thread's reads are
  // finite.
  __device__ bool update() const {
    bool finite = true;
    if constexpr (kHasReads) finite = read();
    multiply<2, 2>(Across{m_.X, kAcross}, Across{m_.D, m_.ld}, kSlots, tiles_, kSmallChunk,
                   [&](int i, int j, float x, float y) {
                     float* r = m_.R + i * m_.ld + j;
                     store_pair(r, r[0] + x, r[1] + y);
                   });
    // Above the diagonal, and mirrored; from the last warp on, which has the least to do so far.
    const float scale = 1.0f / m_.decay[steps_ - 1];
    for (int item = warps_ - 1 - warp_; item < kHalves * kSlots / 16; item += warps_) {
      const int i0 = item % kHalves * 32, j0 = item / kHalves * 16;
      if (j0 + 16 <= i0) continue;
      Tiles<2, 2> x;
      x.add(Across{m_.X, kAcross}, i0, Across{m_.X, kAcross}, j0, kSmallChunk);
      const auto set = [&](int i, int j, float change) {
        if (j < i) return;
        const float u = (m_.U[i * kAlong + j] - change) * scale;
        m_.U[i * kAlong + j] = m_.U[j * kAlong + i] = u;
      };
      x.each(i0, j0, [&](int i, int j, float x0, float x1) {
        set(i, j, x0);
        set(i, j + 1, x1);
      });
    }
    return finite;
  }

  __device__ bool read() const {
    bool finite = true;  // a predicate: one more register, as of Finite, spills
    const auto check = [&](float x) { finite = finite && fabsf(x) <= kLargestFloat; };
    const int64_t C = args_.n.C, row = item_.row * args_.n.T + first_;
    float* const to = static_cast<float*>(args_.reads_out.data) + row * C + columns_.first;
    multiply<2, 2>(Along{m_.A, kFactor}, Across{m_.D, m_.ld}, kSmallChunk, tiles_, kSmallChunk,
                   [&](int i, int j, float x, float y) {
                     if (i >= steps_) return;
                     const float* o = m_.O + i * m_.ld + j;
                     x += o[0];
                     y += o[1];
                     check(x + y);
                     if (j < columns_.count) to[i * C + j] = x;
                     if (j + 1 < columns_.count) to[i * C + j + 1] = y;
                   });
    if (columns_.index != 0) return finite;
    for (int t = warp_; t < steps_; t += warps_) {
      const float a = m_.A[t * kFactor + lane()], left = m_.var[t] - warp_sum(a * a);
      check(left);
      if (lane() == 0)
        store_variance(args_.read_var_out, item_.row, first_ + t,
                       double(left) / double(m_.decay[t]));
    }
    return finite;
  }
};

}  // namespace kanerva::cuda
