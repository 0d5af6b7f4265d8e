// The adjoint of a short write of a small memory by one block, in float32, from the posterior: at
// most 64 steps and slots, no decay, any number of columns. Nothing is factorised; all of it is
// products of tiles in tensor cores. With (R, U) the posterior, n the noise variances, gU and gR
// the gradients of the posterior, gl that of the log evidence (docs/algorithms.md):
//
//   A = (Z - W R) / n,  G = W U / n,  dZ = G gR - gl A,  dR0 = gR - W'dZ,  X = A gR'
//   M = G gU - X + gl C/2 W / n,  I^ = G M' + gl/2 (A A' - C / n),  dn = diag(I^)
//   dW = (X - 2 G gU - gl C W / n) U - dZ R',  dU0 = gU + sym(W' (X - 2 G gU + I^ W))
//
// Forming A and G from the posterior cancels where a step leaves little of its variance: max w'U0 w
// / w'U w is measured, and what is above the limit is left to whoever called.
#pragma once

#include "fragments.cuh"
#include "marks.cuh"
#include "write_chunk.cuh"

namespace kanerva::cuda {

// Shared memory of a block; kSize is 32 or 64, for steps and slots alike. What is square is kLd
// apart, what is as wide as the panel ld. Padded with zeros.
template <int kSize>
struct SmallAdjointMemory {
  static constexpr int kLd = stride_along(kSize), kSquare = kSize * kLd;

  float *W, *U, *G, *gU, *X, *AA, *dZR;  // AA: U0 before it is A A', and then I^
  float* inverse;                        // 1 / n_t; 0 where there is no step
  float *R, *gR, *A, *dZ;                // kSize rows of a panel of columns; A: Z before
  float *M, *V;                          // in the place of the panel, when that is done
  int ld;

  __host__ __device__ SmallAdjointMemory(float* memory, int panel)
      : W(memory),
        U(W + kSquare),
        G(U + kSquare),
        gU(G + kSquare),
        X(gU + kSquare),
        AA(X + kSquare),
        dZR(AA + kSquare),
        inverse(dZR + kSquare),
        R(inverse + kSize),
        gR(R + kSize * stride_across(panel)),
        A(gR + kSize * stride_across(panel)),
        dZ(A + kSize * stride_across(panel)),
        M(R),
        V(M + kSquare),
        ld(stride_across(panel)) {}

  static constexpr size_t bytes(int panel) {
    const int64_t wide = 4 * kSize * int64_t(stride_across(panel));
    return sizeof(float) * size_t(7 * kSquare + kSize + (wide > 2 * kSquare ? wide : 2 * kSquare));
  }
};

template <int kSize>
class SmallAdjoint {
  using Memory = SmallAdjointMemory<kSize>;
  static constexpr int kLd = Memory::kLd;
  static constexpr int kPart = kSize / 32;  // so that a square is eight items

 public:
  __device__ SmallAdjoint(const BayesWriteBackwardArgs& args, int64_t b, int panel)
      : args_(args),
        b_(b),
        T_(int(args.n.T)),
        K_(int(args.n.K)),
        C_(int(args.n.C)),
        panel_(panel),
        m_(reinterpret_cast<float*>(block_memory()), panel),
        gl_(args.grad_log_evidence.data != nullptr ? float(scalar(args.grad_log_evidence, b))
                                                   : 0.0f) {}

  // False, in every thread, when it is too hard, an input is out of its domain or a gradient not
  // finite; then nothing that was stored counts. Leaves the block synchronised.
  __device__ bool run() {
    start(args_.weights, T_, K_, m_.W, true);
    start(args_.posterior_cov, K_, K_, m_.U, false);
    start(args_.cov, K_, K_, m_.AA, false);
    end_copies();
    start(args_.grad_cov, K_, K_, m_.gU, false);
    end_copies();
    start_panel(0);
    bool bad = false;
    for (int t = block_thread(); t < kSize; t += block_threads()) {
      const bool kept = t < T_ && keeps_step(args_.mask, b_, t);
      const double v = kept ? scalar(args_.noise_var, b_, t) : 1.0;
      bad = bad || !(v > 0.0 && v <= kLargestNoise);
      m_.inverse[t] = kept ? float(1.0 / v) : 0.0f;
    }
    wait_for_copies<2>();
    bad = __syncthreads_or(bad);
    if (!bad) {
      square(Along{m_.W, kLd}, Along{m_.U, kLd},
             [&](int t, int k, float x) { m_.G[t * kLd + k] = x * m_.inverse[t]; });
      square(Along{m_.W, kLd}, Along{m_.AA, kLd},
             [&](int t, int k, float x) { m_.X[t * kLd + k] = x * m_.inverse[t]; });
      __syncthreads();
      bad = __syncthreads_or(shrinks_much());
    }
    if (bad) {
      wait_for_copies<0>();  // before its memory is used for something else
      __syncthreads();
      return false;
    }
    for (int first = 0; first < C_; first += panel_) {
      columns(first);
      if (first + panel_ < C_) start_panel(first + panel_);
    }
    slots();
    return __syncthreads_and(finite_.all());
  }

 private:
  // Starts the copy of a matrix, or zeros where there is none, into a square; without the rows that
  // the mask leaves out if they are `steps`.
  __device__ void start(const View& v, int rows, int columns, float* to, bool steps) const {
    const Rows from = rows_of(v.data != nullptr ? v : args_.mean, b_, 0, 0);
    start_copy(from, v.data != nullptr ? rows : 0, columns, to, kLd, kSize, kSize,
               [&](int t) { return !steps || keeps_step(args_.mask, b_, t); });
  }

  __device__ void start_panel(int first) const {
    const int n = columns_from(first), padded = (n + 7) / 8 * 8;
    const auto always = [](int) { return true; };
    const View& gR = args_.grad_mean;
    start_copy(rows_of(args_.posterior_mean, b_, 0, first), K_, n, m_.R, m_.ld, kSize, padded,
               always);
    start_copy(rows_of(gR.data != nullptr ? gR : args_.mean, b_, 0, first),
               gR.data != nullptr ? K_ : 0, n, m_.gR, m_.ld, kSize, padded, always);
    start_copy(rows_of(args_.values, b_, 0, first), T_, n, m_.A, m_.ld, kSize, padded,
               [&](int t) { return keeps_step(args_.mask, b_, t); });
    end_copies();
  }

  __device__ int columns_from(int first) const {
    return first + panel_ <= C_ ? panel_ : C_ - first;
  }

  // f(i, j, x) for the elements x of rows of a times rows of b, kSize of both.
  template <class A, class B, class F>
  __device__ void square(A a, B b, F f, int depth = kSize) const {
    multiply<kPart, kPart>(a, b, kSize, kSize / 8, depth, [=](int i, int j, float x, float y) {
      f(i, j, x);
      f(i, j + 1, y);
    });
  }

  // f(i, j, x, y) for two elements x and y, side by side, of a (kSize x kSize) times b (kSize x n).
  template <class A, class F>
  __device__ void wide(A a, const float* b, int n, F f) const {
    multiply<2, 2>(a, Across{b, m_.ld}, kSize, (n + 7) / 8, kSize, f);
  }

  // Two elements of a gradient that is n wide, from column j on; ones that are not finite count.
  __device__ void store_gradient(float* row, int j, int n, float x, float y) {
    finite_.check(x);
    finite_.check(y);
    if (j < n) row[j] = x;
    if (j + 1 < n) row[j + 1] = y;
  }

  // Whether a step of this thread's leaves too little of its variance, w'U0 w / n in X and w'U w /
  // n in G before the last product.
  __device__ bool shrinks_much() const {
    bool much = false;
    for (int t = block_thread() >> 5; t < T_; t += block_threads() >> 5) {
      float before = 0.0f, after = 0.0f;
      for (int k = lane(); k < kSize; k += 32) {
        const float w = m_.W[t * kLd + k];
        before = fmaf(m_.X[t * kLd + k], w, before);
        after = fmaf(m_.G[t * kLd + k], w, after);
      }
      before = warp_sum(before);
      after = warp_sum(after);
      much = much || !(before >= 0.0f && after >= 0.0f) ||
             !(before <= float(kShrinkForFloat32) * after);
    }
    return much;
  }

  // dZ, dR0 and what a panel of columns adds to X, A A' and dZ R'.
  __device__ void columns(int first) {
    const int n = columns_from(first), depth = (n + 7) / 8 * 8, ld = m_.ld;
    const auto into = [&](float* sum) {
      return [=](int i, int j, float x) {
        float& to = sum[i * kLd + j];
        to = first == 0 ? x : to + x;
      };
    };
    wait_for_copies<0>();
    __syncthreads();
    wide(Along{m_.W, kLd}, m_.R, n, [&](int t, int j, float x, float y) {
      float* const a = m_.A + t * ld + j;
      store_pair(a, m_.inverse[t] * (a[0] - x), m_.inverse[t] * (a[1] - y));
    });
    __syncthreads();
    float* const d_values = static_cast<float*>(args_.d_values.data) + b_ * T_ * C_ + first;
    wide(Along{m_.G, kLd}, m_.gR, n, [&](int t, int j, float x, float y) {
      const float* const a = m_.A + t * ld + j;
      x -= gl_ * a[0];
      y -= gl_ * a[1];
      store_pair(m_.dZ + t * ld + j, x, y);
      store_gradient(d_values + t * C_, j, t < T_ ? n : 0, x, y);
    });
    square(Along{m_.A, ld}, Along{m_.gR, ld}, into(m_.X), depth);
    if (gl_ != 0.0f) square(Along{m_.A, ld}, Along{m_.A, ld}, into(m_.AA), depth);
    __syncthreads();
    square(Along{m_.dZ, ld}, Along{m_.R, ld}, into(m_.dZR), depth);
    float* const d_mean = static_cast<float*>(args_.d_mean.data) + b_ * K_ * C_ + first;
    wide(Across{m_.W, kLd}, m_.dZ, n, [&](int k, int j, float x, float y) {
      const float* const g = m_.gR + k * ld + j;
      store_gradient(d_mean + k * C_, j, k < K_ ? n : 0, g[0] - x, g[1] - y);
    });
    __syncthreads();
  }

  // dn, dW and dU0.
  __device__ void slots() {
    const float evidence = gl_ * float(C_);
    const int w = block_thread() >> 5, warps = block_threads() >> 5;
    const auto pairs = [&](auto f) {  // of elements above the diagonal, and those on it
      for (int i = w; i < kSize; i += warps)
        for (int j = lane(); j < kSize; j += 32)
          if (j >= i) f(i * kLd + j, j * kLd + i);
    };
    pairs([&](int a, int b) { m_.gU[a] = m_.gU[b] = 0.5f * (m_.gU[a] + m_.gU[b]); });
    __syncthreads();
    square(Along{m_.G, kLd}, Along{m_.gU, kLd}, [&](int t, int k, float x) {
      const int at = t * kLd + k;
      const float difference = m_.X[at] - x, scaled = evidence * m_.inverse[t] * m_.W[at];
      m_.M[at] = 0.5f * scaled - difference;
      m_.X[at] = difference - x;
      m_.V[at] = difference - x - scaled;
    });
    __syncthreads();
    square(Along{m_.G, kLd}, Along{m_.M, kLd}, [&](int i, int j, float x) {
      float& inner = m_.AA[i * kLd + j];
      if (gl_ != 0.0f) x += 0.5f * gl_ * inner;
      if (i == j) x -= 0.5f * evidence * m_.inverse[i];
      inner = x;
      finite_.check(x);
      if (i == j && i < T_) store_scalar(args_.d_noise_var, b_, i, double(x));
    });
    float* const d_weights = static_cast<float*>(args_.d_weights.data) + b_ * T_ * K_;
    square(Along{m_.V, kLd}, Along{m_.U, kLd}, [&](int t, int k, float x) {
      const float d = x - m_.dZR[t * kLd + k];
      finite_.check(d);
      if (t < T_ && k < K_) d_weights[t * K_ + k] = d;
    });
    __syncthreads();
    square(Along{m_.AA, kLd}, Across{m_.W, kLd},
           [&](int t, int k, float x) { m_.X[t * kLd + k] += x; });
    __syncthreads();
    square(Across{m_.W, kLd}, Across{m_.X, kLd},
           [&](int i, int j, float x) { m_.M[i * kLd + j] = x; });
    __syncthreads();
    float* const d_cov = static_cast<float*>(args_.d_cov.data) + b_ * K_ * K_;
    for (int i = w; i < K_; i += warps)
      for (int j = lane(); j < K_; j += 32) {
        const float d = m_.gU[i * kLd + j] + 0.5f * (m_.M[i * kLd + j] + m_.M[j * kLd + i]);
        finite_.check(d);
        d_cov[i * K_ + j] = d;
      }
  }

  const BayesWriteBackwardArgs& args_;
  const int64_t b_;
  const int T_, K_, C_, panel_;
  const Memory m_;
  const float gl_;
  Finite finite_;
};

}  // namespace kanerva::cuda
