// Reads of memories of at most 64 slots, forward and backward, in float32: products of tiles in
// tensor cores, 32 addresses at a time.
//
//   values = W R,  var_t = w'U w;  dW = gV R' + 2 gv W U,  dR = W'gV,  dU = W' diag(gv) W
#pragma once

#include "marks.cuh"
#include "small_factor.cuh"

namespace kanerva::cuda {

// Shared memory of a block; kSlots is 32 or 64. Padded with zeros.
template <int kSlots>
struct SmallReadMemory {
  static constexpr int kLd = stride_along(kSlots), kSquare = kSlots * kLd, kRow = kSmallChunk * kLd;

  float *U, *W;       // kSlots and kSmallChunk rows, kLd apart
  float* R;           // kSlots rows of columns, ld apart
  float *dU, *dR;     // only backward, as are the next
  float *scaled, *X;  // gv W and, when those are used, gV R'; W U: like W
  float* gV;          // kSmallChunk rows of columns
  float* slope;       // gv
  int ld;

  __host__ __device__ SmallReadMemory(float* memory, int columns)
      : U(memory),
        W(U + kSquare),
        R(W + kRow),
        dU(R + kSlots * stride_across(columns)),
        dR(dU + kSquare),
        scaled(dR + kSlots * stride_across(columns)),
        X(scaled + kRow),
        gV(X + kRow),
        slope(gV + kSmallChunk * stride_across(columns)),
        ld(stride_across(columns)) {}

  static constexpr size_t bytes(int columns, bool backward) {
    const int64_t wide = stride_across(columns);
    const int64_t forward = kSquare + kRow + kSlots * wide;
    return sizeof(float) *
           size_t(backward ? 2 * forward + kRow + kSmallChunk * (wide + 1) : forward);
  }
};

// Starts the copy of up to kSmallChunk rows of an item's steps or queries, from `first` on.
__device__ inline void start_tile(const View& v, int64_t b, int64_t first, int64_t T, int columns,
                                  float* to, int ld, int padded) {
  const int64_t left = T - first;
  const int count = left < 0 ? 0 : left < kSmallChunk ? int(left) : kSmallChunk;
  start_copy(rows_of(v, b, count > 0 ? first : 0, 0), count, columns, to, ld, kSmallChunk, padded,
             [](int) { return true; });
}

// values and var of `count` addresses W from `first` on; whether this thread's are finite.
template <int kSlots>
__device__ inline bool store_reads(const Sizes& n, const View& values_out, const View& var_out,
                                   int64_t b, int64_t first, int count, Along W, Across R,
                                   Along U) {
  const int C = int(n.C);
  Finite finite;
  float* const values = static_cast<float*>(values_out.data) + (b * n.T + first) * n.C;
  multiply<2, 2>(W, R, kSmallChunk, (C + 7) / 8, kSlots, [&](int i, int j, float x, float y) {
    if (i >= count) return;
    finite.check(x);
    finite.check(y);
    if (j < C) values[int64_t(i) * C + j] = x;
    if (j + 1 < C) values[int64_t(i) * C + j + 1] = y;
  });
  // By the last warps, which have had less to do.
  const int from_last = ((block_threads() - 1) >> 5) - (block_thread() >> 5);
  if (from_last < 2)
    quadratic_forms<kSlots>(W, 16 * from_last, U, [&](int t, float x) {
      finite.check(x);
      // Rounding must not make the variance of a positive semi-definite covariance negative.
      if (t < count) store_scalar(var_out, b, first + t, x < 0.0f ? 0.0 : x);
    });
  return finite.all();
}

// The addresses of memory b that this of `shares` blocks has. False, in every thread, where
// something is not finite.
template <int kSlots>
__device__ inline bool read_small(const ReadArgs& args, int64_t b, int share, int shares) {
  constexpr int kLd = SmallReadMemory<kSlots>::kLd;
  const int K = int(args.n.K), C = int(args.n.C);
  const int64_t T = args.n.T, step = int64_t(shares) * kSmallChunk;
  const SmallReadMemory<kSlots> m(reinterpret_cast<float*>(block_memory()), C);
  const auto always = [](int) { return true; };
  int64_t first = int64_t(share) * kSmallChunk;
  start_copy(rows_of(args.cov, b, 0, 0), K, K, m.U, kLd, kSlots, kSlots, always);
  start_copy(rows_of(args.mean, b, 0, 0), K, C, m.R, m.ld, kSlots, (C + 7) / 8 * 8, always);
  start_tile(args.weights, b, first, T, K, m.W, kLd, kSlots);
  end_copies();
  bool good = true;
  for (; good && first < T; first += step) {
    wait_for_copies<0>();
    __syncthreads();
    const int count = int(first + kSmallChunk <= T ? kSmallChunk : T - first);
    const bool finite = store_reads<kSlots>(args.n, args.values_out, args.var_out, b, first, count,
                                            Along{m.W, kLd}, Across{m.R, m.ld}, Along{m.U, kLd});
    good = __syncthreads_and(finite);
    start_tile(args.weights, b, first + step, T, K, m.W, kLd, kSlots);
    end_copies();
  }
  wait_for_copies<0>();
  return good;
}

// False, in every thread, where a gradient is not finite: numbers above 4e34 are not split.
template <int kSlots>
__device__ inline bool read_adjoint_small(const ReadBackwardArgs& args, int64_t b) {
  Finite finite;
  constexpr int kLd = SmallReadMemory<kSlots>::kLd;
  const int K = int(args.n.K), C = int(args.n.C), padded = (C + 7) / 8 * 8;
  const int64_t T = args.n.T;
  const SmallReadMemory<kSlots> m(reinterpret_cast<float*>(block_memory()), C);
  const auto always = [](int) { return true; };
  const bool has_values = args.grad_values.data != nullptr, has_var = args.grad_var.data != nullptr;
  start_copy(rows_of(args.cov, b, 0, 0), K, K, m.U, kLd, kSlots, kSlots, always);
  start_copy(rows_of(args.mean, b, 0, 0), K, C, m.R, m.ld, kSlots, padded, always);
  for (int e = block_thread(); e < SmallReadMemory<kSlots>::kSquare; e += block_threads())
    m.dU[e] = 0.0f;
  for (int e = block_thread(); e < kSlots * m.ld; e += block_threads()) m.dR[e] = 0.0f;
  for (int64_t first = 0; first < T; first += kSmallChunk) {
    const int count = int(first + kSmallChunk <= T ? kSmallChunk : T - first);
    start_tile(args.weights, b, first, T, K, m.W, kLd, kSlots);
    if (has_values) start_tile(args.grad_values, b, first, T, C, m.gV, m.ld, padded);
    for (int t = block_thread(); t < kSmallChunk; t += block_threads())
      m.slope[t] = has_var && t < count ? float(scalar(args.grad_var, b, first + t)) : 0.0f;
    end_copies();
    wait_for_copies<0>();
    __syncthreads();
    if (has_values) {
      multiply<1, 1>(Along{m.gV, m.ld}, Along{m.R, m.ld}, kSmallChunk, kSlots / 8, padded,
                     [&](int i, int j, float x, float y) { store_pair(m.X + i * kLd + j, x, y); });
      multiply<2, 2>(Across{m.W, kLd}, Across{m.gV, m.ld}, kSlots, padded / 8, kSmallChunk,
                     [&](int i, int j, float x, float y) {
                       float* d = m.dR + i * m.ld + j;
                       store_pair(d, d[0] + x, d[1] + y);
                     });
    }
    if (first == 0) symmetrise_square<kSlots>(m.U, kLd);
    each(kSmallChunk, kSlots,
         [&](int t, int k) { m.scaled[t * kLd + k] = m.slope[t] * m.W[t * kLd + k]; });
    __syncthreads();
    float* const d_weights = static_cast<float*>(args.d_weights.data) + (b * T + first) * K;
    const auto store = [&](int t, int k, float x) {
      if (t >= count || k >= K) return;
      const float d = 2.0f * x + (has_values ? m.X[t * kLd + k] : 0.0f);
      finite.check(d);
      d_weights[t * K + k] = d;
    };
    if (has_var) {
      multiply<1, 1>(Along{m.scaled, kLd}, Along{m.U, kLd}, kSmallChunk, kSlots / 8, kSlots,
                     [&](int i, int j, float x, float y) {
                       store(i, j, x);
                       store(i, j + 1, y);
                     });
      multiply<1, 1>(Across{m.W, kLd}, Across{m.scaled, kLd}, kSlots, kSlots / 8, kSmallChunk,
                     [&](int i, int j, float x, float y) {
                       float* d = m.dU + i * kLd + j;
                       store_pair(d, d[0] + x, d[1] + y);
                     });
    } else {
      each(count, K, [&](int t, int k) { store(t, k, 0.0f); });
    }
    __syncthreads();
  }
  end_copies();  // where there was no step
  wait_for_copies<0>();
  __syncthreads();
  float* const d_cov = static_cast<float*>(args.d_cov.data) + b * K * K;
  float* const d_mean = static_cast<float*>(args.d_mean.data) + b * K * C;
  const auto checked = [&](float x) {
    finite.check(x);
    return x;
  };
  each(K, K, [&](int i, int j) { d_cov[i * K + j] = checked(m.dU[i * kLd + j]); });
  each(K, C, [&](int i, int j) { d_mean[int64_t(i) * C + j] = checked(m.dR[i * m.ld + j]); });
  return __syncthreads_and(finite.all());
}

struct SmallReadPlan {
  bool serves = false;
  int shares = 1;     // blocks per memory
  size_t shared = 0;  // bytes of a block
};

// Blocks per memory, each with a share of the tiles of its queries, where processors are idle.
inline int shares_of_queries(const Sizes& n, const Device& device) {
  const int64_t tiles = (n.T + kSmallChunk - 1) / kSmallChunk, idle = device.processors / n.B;
  return int(idle < 1 || tiles < 1 ? 1 : idle < tiles ? idle : tiles);
}

// For kernels whose blocks take `shared` bytes, beside a general one with teams of `team` blocks.
template <class... Views>
SmallReadPlan plan_small_read(const Sizes& n, int team, size_t shared, const Device& device,
                              const Views&... views) {
  SmallReadPlan plan;
  plan.shared = shared;
  plan.serves = n.B >= 1 && n.K <= kMostSmallSlots && team == 1 &&
                shared <= device.shared_per_block && are_float32_by_rows(views...);
  if (plan.serves) plan.shares = shares_of_queries(n, device);
  return plan;
}

inline SmallReadPlan plan_small(const ReadArgs& args, int team, const Device& device) {
  const int C = int(args.n.C);
  const size_t shared =
      args.n.K <= 32 ? SmallReadMemory<32>::bytes(C, false) : SmallReadMemory<64>::bytes(C, false);
  return plan_small_read(args.n, team, shared, device, args.mean, args.cov, args.weights);
}

// A memory's gradients are one block's.
inline SmallReadPlan plan_small(const ReadBackwardArgs& args, int team, const Device& device) {
  const int C = int(args.n.C);
  const size_t shared =
      args.n.K <= 32 ? SmallReadMemory<32>::bytes(C, true) : SmallReadMemory<64>::bytes(C, true);
  SmallReadPlan plan = plan_small_read(args.n, team, shared, device, args.mean, args.cov,
                                       args.weights, args.grad_values);
  plan.shares = 1;
  return plan;
}

// The workspace where the small kernel, if it serves, goes before the general one: the marks, then
// that of the latter.
inline size_t workspace_of(const Sizes& n, const SmallReadPlan& small, const BlockPlan& general) {
  return (small.serves ? marks_size(n.B * small.shares) : 0) + workspace_of(n, general);
}

// Starts the general kernel for all memories or, where the small one serves, behind it for those
// that it marks.
template <class Args>
void start_small(void (*kernel)(Args, int*), int threads, const SmallReadPlan& small,
                 void (*general)(Args, BlockPlan, char*, const int*, int), const BlockPlan& plan,
                 const Args& args, const Launch& to) {
  if (!small.serves) return start(general, args, to, plan, nullptr, 1);
  int* const marks = static_cast<int*>(to.workspace);
  char* const workspace = static_cast<char*>(to.workspace) + marks_size(args.n.B * small.shares);
  launch(kernel, {args.n.B, small.shares}, threads, small.shared, to.stream, args, marks);
  launch(general, {blocks_for_marked(args.n.B, to.device)}, plan.threads, plan.shared, to.stream,
         args, plan, workspace, static_cast<const int*>(marks), small.shares);
}

template <int kSlots>
__global__ void __launch_bounds__(256, 2)
    small_read_kernel(const __grid_constant__ ReadArgs args, int* marks) {
  const int share = int(blockIdx.y), shares = int(gridDim.y);
  const bool done = read_small<kSlots>(args, blockIdx.x, share, shares);
  if (block_thread() == 0) marks[blockIdx.x * int64_t(shares) + share] = !done;
}

template <int kSlots>
__global__ void __launch_bounds__(256, 2)
    small_read_backward_kernel(const __grid_constant__ ReadBackwardArgs args, int* marks) {
  const bool done = read_adjoint_small<kSlots>(args, blockIdx.x);
  if (block_thread() == 0) marks[blockIdx.x] = !done;
}

}  // namespace kanerva::cuda
