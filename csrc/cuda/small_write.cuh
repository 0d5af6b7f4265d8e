// The write of a memory of at most 64 slots by one block, in float32: the algebra of write_chunk.cuh
// in chunks of 32 steps, with everything in shared memory and registers.
//
//   X = W U,  S = X W' + diag(n) = F F',  [P E] = F^-1 [X Z - W R],  R += P'E,  U <- (U - P'P) / b
//
// Products are tiles in tensor cores (fragments.cuh). One warp factors S, a column per lane, while
// the others subtract W R from the values; then a lane solves for a column of P or E at a time. The
// addresses and values of the next chunk are copied meanwhile. What is harder than float32 bears is
// left to whoever called.
#pragma once

#include "fragments.cuh"
#include "write_block.cuh"

namespace kanerva::cuda {

constexpr int kSmallChunk = 32;

// Shared memory of a block; kSlots is 32 or 64, the matrices are padded with zeros.
template <int kSlots>
struct SmallMemory {
  static constexpr int kAlong = stride_along(kSlots), kAcross = stride_across(kSlots);
  static constexpr int kFactor = stride_along(kSmallChunk);

  float *U, *W;                       // kSlots x kSlots and kSmallChunk x kSlots, kAlong apart
  float* X;                           // kSmallChunk x kSlots, kAcross apart; then P
  float* F;                           // S, then F': row t has F(t, t) on, kFactor apart
  float *noise, *decay, *reciprocal;  // n_t, b_t and 1 / F(t, t)
  float *D, *R;                       // kSmallChunk and kSlots rows of the columns, ld apart
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
        ld(stride_across(columns)) {}

  static constexpr size_t bytes(int columns) {
    return sizeof(float) * size_t((kSlots + kSmallChunk) * (kAlong + stride_across(columns)) +
                                  kSmallChunk * (kAcross + kFactor + 3));
  }
};

// The numbers of the steps from `first` on, by one warp, a step per lane; steps that the mask leaves
// out and those beyond the last have noise one. `kept` has a bit for each of the others. False in a
// lane whose noise or decay is out of its domain.
template <int kSlots>
__device__ inline bool load_step(const BayesWriteArgs& args, int64_t b, int64_t first, int steps,
                                 const SmallMemory<kSlots>& m, unsigned& kept) {
  const int t = lane();
  const bool keeps = t < steps && keeps_step(args.mask, b, first + t);
  kept = __ballot_sync(0xffffffffu, keeps);
  const double v = keeps ? scalar(args.noise_var, b, first + t) : 1.0;
  double g = keeps && args.decay.data != nullptr ? scalar(args.decay, b, first + t) : 1.0;
  const bool good = v > 0.0 && v <= 1e300 && g > 0.0 && g <= 1.0;
  if (args.decay.data != nullptr) {
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const double before = __shfl_up_sync(0xffffffffu, g, distance);
      if (t >= distance) g *= before;
    }
  }
  m.noise[t] = keeps ? float(v * g) : 1.0f;
  m.decay[t] = float(g);
  return good;
}

// S becomes its factor, by one warp: a lane has a column of S. `logs` grows by what the lane's step
// adds to the log evidence of a column. False, in every lane, where S is harder than float32 bears.
template <int kSlots>
__device__ inline bool factor_small(int steps, unsigned kept, const SmallMemory<kSlots>& m,
                                    double& logs) {
  constexpr int ld = SmallMemory<kSlots>::kFactor;
  constexpr unsigned all = 0xffffffffu;
  const int j = lane();
  float s[kSmallChunk];
#pragma unroll
  for (int i = 0; i < kSmallChunk; ++i) s[i] = m.F[i * ld + j];
  const float hardness = m.F[j * ld + j] / m.noise[j] - 1.0f;
  if (!__all_sync(all, hardness <= float(kHardForFloat32Factors))) return false;
  bool good = true;
  float pivot = 1.0f;
#pragma unroll
  for (int t = 0; t < kSmallChunk; ++t) {
    if (t >= steps) continue;  // the same in all lanes
    const float d = __shfl_sync(all, s[t], t);
    good = good && d > 1e-30f && d < 1e30f;
    const float multiplier = s[t] * approximate_reciprocal(d);
#pragma unroll
    for (int i = t + 1; i < kSmallChunk; ++i)
      s[i] = fmaf(-multiplier, __shfl_sync(all, s[t], i), s[i]);
    const float scale = approximate_rsqrt(d);
    m.F[t * ld + j] = s[t] * scale;
    if (j == t) {
      m.reciprocal[t] = scale;
      pivot = d;
    }
  }
  if (kept >> j & 1) logs += double(logf(pivot)) - double(logf(m.decay[j])) + kLog2Pi;
  return good;
}

// Solves F x = a column of the chunk, in its place; gives the sum of b_t x_t^2.
template <int kSlots>
__device__ inline float solve_column(float* column, int ld, int steps,
                                     const SmallMemory<kSlots>& m) {
  float x[kSmallChunk];
#pragma unroll
  for (int t = 0; t < kSmallChunk; ++t) x[t] = column[t * ld];
  float squares = 0.0f;
#pragma unroll
  for (int t = 0; t < kSmallChunk; ++t) {
    if (t >= steps) continue;
    x[t] *= m.reciprocal[t];
    squares = fmaf(m.decay[t] * x[t], x[t], squares);
#pragma unroll
    for (int q = (t + 1) / 4; q < kSmallChunk / 4; ++q) {
      const auto f =
          *reinterpret_cast<const float4*>(m.F + t * SmallMemory<kSlots>::kFactor + 4 * q);
      const float four[4] = {f.x, f.y, f.z, f.w};
#pragma unroll
      for (int r = 0; r < 4; ++r)
        if (4 * q + r > t) x[4 * q + r] = fmaf(-four[r], x[t], x[4 * q + r]);
    }
    column[t * ld] = x[t];
  }
  return squares;
}

// Sum over the block of its threads' x, in every thread.
__device__ inline double block_sum(double x) {
  x = warp_sum(x);
  double* sums = head().sums;
  if (lane() == 0) sums[block_thread() >> 5] = x;
  __syncthreads();
  double total = 0.0;
  for (int w = 0; w < block_threads() >> 5; ++w) total += sums[w];
  return total;
}

// The write of columns of item b. False, in every thread, where it is too hard; then nothing that
// was stored counts. Leaves the block synchronised.
template <int kSlots>
__device__ inline bool write_small(const BayesWriteArgs& args, int64_t b,
                                   const ColumnBlock& columns, double& evidence) {
  using Memory = SmallMemory<kSlots>;
  constexpr int kAlong = Memory::kAlong, kAcross = Memory::kAcross, kFactor = Memory::kFactor;
  const int n = columns.count, K = int(args.n.K), tiles = (n + 7) / 8, pairs = (tiles + 1) / 2;
  const int w = block_thread() >> 5, warps = block_threads() >> 5;
  const Memory m(reinterpret_cast<float*>(block_memory()), n);
  const auto is_kept = [&](int64_t t) { return keeps_step(args.mask, b, t); };
  const auto start_weights = [&](int64_t first, int steps) {
    start_copy(rows_of(args.weights, b, first, 0), steps, K, m.W, kAlong, kSmallChunk, kSlots,
               [&](int t) { return is_kept(first + t); });
    end_copies();
  };
  const auto start_values = [&](int64_t first, int steps) {
    start_copy(rows_of(args.values, b, first, columns.first), steps, n, m.D, m.ld, kSmallChunk,
               8 * tiles, [&](int t) { return is_kept(first + t); });
    end_copies();
  };
  const auto always = [](int) { return true; };
  int steps = int(args.n.T < kSmallChunk ? args.n.T : kSmallChunk);
  start_copy(rows_of(args.cov, b, 0, 0), K, K, m.U, kAlong, kSlots, kSlots, always);
  start_weights(0, steps);
  start_copy(rows_of(args.mean, b, 0, columns.first), K, n, m.R, m.ld, kSlots, 8 * tiles, always);
  start_values(0, steps);

  float squares = 0.0f;
  double logs = 0.0;
  bool hard = false;
  for (int64_t first = 0; first < args.n.T && !hard; first += kSmallChunk) {
    steps = int(first + kSmallChunk <= args.n.T ? kSmallChunk : args.n.T - first);
    const int64_t next = first + kSmallChunk;
    const int next_steps = int(next + kSmallChunk <= args.n.T ? kSmallChunk : args.n.T - next);
    const bool is_last = next >= args.n.T;
    unsigned kept = 0;
    if (w == 0) hard = !load_step(args, b, first, steps, m, kept);
    wait_for_copies<1>();  // of the values
    hard = __syncthreads_or(hard);
    if (hard) break;
    for (int tile = w; tile < kSlots / 4; tile += warps) {  // X = W U, which is symmetric
      const int i0 = tile % 2 * 16, j0 = tile / 2 * 8;
      Tiles<1, 1> x;
      x.add(Factor<false>{m.W, kAlong}, i0, Factor<false>{m.U, kAlong}, j0, kSlots);
      x.each(i0, j0, [&](int i, int j, float x0, float x1) {
        *reinterpret_cast<float2*>(m.X + i * kAcross + j) = {x0, x1};
      });
    }
    __syncthreads();
    for (int tile = w; tile < 8; tile += warps) {  // S = X W' + diag(n)
      const int i0 = tile % 2 * 16, j0 = tile / 2 * 8;
      Tiles<1, 1> x;
      x.add(Factor<false>{m.X, kAcross}, i0, Factor<false>{m.W, kAlong}, j0, kSlots);
      x.each(i0, j0, [&](int i, int j, float x0, float x1) {
        if (i == j) x0 += m.noise[i];
        if (i == j + 1) x1 += m.noise[i];
        *reinterpret_cast<float2*>(m.F + i * kFactor + j) = {x0, x1};
      });
    }
    wait_for_copies<0>();
    __syncthreads();
    if (w == 0) hard = !factor_small(steps, kept, m, logs);
    for (int pair = w - 1; w > 0 && pair < pairs; pair += warps - 1) {  // D = Z - W R
      Tiles<2, 2> x;
      x.add(Factor<false>{m.W, kAlong}, 0, Factor<true>{m.R, m.ld}, 16 * pair, kSlots,
            tiles - 2 * pair);
      x.each(
          0, 16 * pair,
          [&](int i, int j, float x0, float x1) {
            auto& d = *reinterpret_cast<float2*>(m.D + i * m.ld + j);
            d = {d.x - x0, d.y - x1};
          },
          tiles - 2 * pair);
    }
    hard = __syncthreads_or(hard);
    if (hard) break;
    if (!is_last) start_weights(next, next_steps);
    constexpr int of_X = kSlots / 32;
    for (int c = w; c < of_X + (tiles + 3) / 4; c += warps) {  // a column of [X D] per lane
      const bool is_value = c >= of_X;
      const int j = (is_value ? c - of_X : c) * 32 + lane();
      float* const column = (is_value ? m.D : m.X) + j;
      if (is_value && j >= n) continue;
      const float sum = solve_column(column, is_value ? m.ld : kAcross, steps, m);
      if (is_value) squares += sum;
    }
    __syncthreads();
    const float scale = 1.0f / m.decay[steps - 1];
    float* const mean_out = static_cast<float*>(args.mean_out.data) + b * K * args.n.C;
    for (int item = w; item < of_X * (pairs + kSlots / 16); item += warps) {
      const int i0 = item % of_X * 32, pair = item / of_X, j0 = (pair - pairs) * 16;
      Tiles<2, 2> x;
      if (pair < pairs) {  // R += P'E
        x.add(Factor<true>{m.X, kAcross}, i0, Factor<true>{m.D, m.ld}, 16 * pair, kSmallChunk,
              tiles - 2 * pair);
        x.each(
            i0, 16 * pair,
            [&](int i, int j, float x0, float x1) {
              auto& r = *reinterpret_cast<float2*>(m.R + i * m.ld + j);
              r = {r.x + x0, r.y + x1};
              if (is_last && i < K) {
                float* to = mean_out + i * args.n.C + columns.first + j;
                if (j < n) to[0] = r.x;
                if (j + 1 < n) to[1] = r.y;
              }
            },
            tiles - 2 * pair);
      } else if (j0 + 16 > i0) {  // U = (U - P'P) / b, above the diagonal, and mirrored
        x.add(Factor<true>{m.X, kAcross}, i0, Factor<true>{m.X, kAcross}, j0, kSmallChunk);
        x.each(i0, j0, [&](int i, int j, float x0, float x1) {
          if (j >= i) {
            const float u = (m.U[i * kAlong + j] - x0) * scale;
            m.U[i * kAlong + j] = m.U[j * kAlong + i] = u;
          }
          if (j + 1 >= i) {
            const float u = (m.U[i * kAlong + j + 1] - x1) * scale;
            m.U[i * kAlong + j + 1] = m.U[(j + 1) * kAlong + i] = u;
          }
        });
      }
    }
    __syncthreads();
    if (!is_last) start_values(next, next_steps);
  }
  if (hard) {
    wait_for_copies<0>();  // before its memory is used for something else
    __syncthreads();
    return false;
  }
  if (columns.index == 0) {
    float* const cov_out = static_cast<float*>(args.cov_out.data) + b * K * K;
    each(K, K, [&](int i, int j) { cov_out[i * K + j] = m.U[i * kAlong + j]; });
  }
  evidence = -0.5 * block_sum(double(squares) + double(n) * logs);
  __syncthreads();
  // Values that are not finite, or whose squares overflow, show here.
  return evidence < kInfinite && evidence > -kInfinite;
}

}  // namespace kanerva::cuda
