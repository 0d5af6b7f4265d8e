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
 protected:
  using Memory = SmallAdjointMemory<kSize>;
  static constexpr int kLd = Memory::kLd;
  static constexpr int kPart = kSize / 32;  // so that a square is eight items

 public:
  // Of columns `begin` to `end`, `panel` of them at a time.
  __device__ SmallAdjoint(const BayesWriteBackwardArgs& args, int64_t b, int panel, int begin,
                          int end)
      : args_(args),
        b_(b),
        T_(int(args.n.T)),
        K_(int(args.n.K)),
        C_(int(args.n.C)),
        panel_(panel),
        begin_(begin),
        end_(end),
        m_(reinterpret_cast<float*>(block_memory()), panel) {}

  // False, in every thread, when it is too hard, an input is out of its domain or a gradient not
  // finite; then nothing that was stored counts. Leaves the block synchronised.
  __device__ bool run() {
    if (!begin(0, kSize)) return false;
    for (int first = begin_; first < end_; first += panel_) {
      columns(first, [&](float* sum) {
        return [=](int i, int j, float x, float y) { add_pair(sum + i * kLd + j, first, x, y); };
      });
      if (first + panel_ < end_) start_panel(first + panel_);
    }
    slots();
    return __syncthreads_and(finite_.all());
  }

 protected:
  // Copies what there is and the first panel, and makes G. False, in every thread, where an input
  // is out of its domain or one of `rows` steps from `row` on too hard.
  __device__ bool begin(int row, int rows) {
    start(args_.weights, T_, K_, m_.W, true);
    start(args_.posterior_cov, K_, K_, m_.U, false);
    start(args_.cov, K_, K_, m_.AA, false);
    end_copies();
    start(args_.grad_cov, K_, K_, m_.gU, false);
    end_copies();
    start_panel(begin_);
    const bool evidence = args_.grad_log_evidence.data != nullptr;
    // By a warp that waits for no other numbers.
    if (evidence && block_thread() == block_threads() - 1)
      head().sums[0] = scalar(args_.grad_log_evidence, b_);
    bool bad = false;
    for (int t = block_thread(); t < kSize; t += block_threads()) {
      const bool kept = t < T_ && keeps_step(args_.mask, b_, t);
      const double v = kept ? scalar(args_.noise_var, b_, t) : 1.0;
      bad = bad || !(v > 0.0 && v <= kLargestNoise);
      m_.inverse[t] = kept ? float(1.0 / v) : 0.0f;
    }
    wait_for_copies<2>();
    bad = __syncthreads_or(bad);
    if (evidence) gl_ = float(head().sums[0]);
    if (!bad) {
      const auto scaled = [&](float* to) {
        return [=](int t, int k, float x, float y) {
          store_pair(to + t * kLd + k, x * m_.inverse[t], y * m_.inverse[t]);
        };
      };
      square(Along{m_.W, kLd}, Along{m_.U, kLd}, scaled(m_.G));
      if (rows == kSize) {
        square(Along{m_.W, kLd}, Along{m_.AA, kLd}, scaled(m_.X));
      } else {
        band(Along{m_.W, kLd}, Along{m_.AA, kLd}, row, rows, scaled(m_.X));
      }
      __syncthreads();
      bad = __syncthreads_or(shrinks_much(row, rows));
    }
    if (bad) {
      wait_for_copies<0>();  // before its memory is used for something else
      __syncthreads();
    }
    return !bad;
  }

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
    return first + panel_ <= end_ ? panel_ : end_ - first;
  }

  // f(i, j, x, y) for two elements x and y, side by side, of rows of a times rows of b, kSize of
  // both.
  template <class A, class B, class F>
  __device__ void square(A a, B b, F f, int depth = kSize) const {
    multiply<kPart, kPart>(a, b, kSize, kSize / 8, depth, f);
  }

  // The same of `rows` rows of a from `row` on, a multiple of 16 of them.
  template <class B, class F>
  __device__ void band(Along a, B b, int row, int rows, F f) const {
    a.data += row * a.ld;
    multiply<1, 1>(a, b, rows, kSize / 8, kSize,
                   [=](int i, int j, float x, float y) { f(row + i, j, x, y); });
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

  // Adds two numbers, side by side, to what panels before `first` have left there.
  __device__ void add_pair(float* to, int first, float x, float y) const {
    if (first > begin_) x += to[0], y += to[1];
    store_pair(to, x, y);
  }

  // Whether a step of this thread's leaves too little of its variance, w'U0 w / n in X and w'U w /
  // n in G before the last product.
  __device__ bool shrinks_much(int row, int rows) const {
    bool much = false;
    const int end = min(T_, row + rows);
    for (int t = row + (block_thread() >> 5); t < end; t += block_threads() >> 5) {
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

  // dZ, dR0 and what a panel of columns adds to X, A A' and dZ R': into(X) is a function that takes
  // two elements of that, and so on.
  template <class Into>
  __device__ void columns(int first, Into into) {
    const int n = columns_from(first), depth = (n + 7) / 8 * 8, ld = m_.ld;
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

  // gU = (gU + gU') / 2. Leaves the block synchronised.
  __device__ void symmetrise_gradient() const {
    for (int i = block_thread() >> 5; i < kSize; i += block_threads() >> 5)
      for (int j = lane(); j < kSize; j += 32) {
        if (j < i) continue;
        float &upper = m_.gU[i * kLd + j], &lower = m_.gU[j * kLd + i];
        upper = lower = 0.5f * (upper + lower);
      }
    __syncthreads();
  }

  // M, X and V from the old X and `moved` = G gU, at one element.
  __device__ void change(int t, int k, float old, float moved) const {
    const int at = t * kLd + k;
    const float scaled = gl_ * float(C_) * m_.inverse[t] * m_.W[at], difference = old - moved;
    m_.M[at] = 0.5f * scaled - difference;
    m_.X[at] = difference - moved;
    m_.V[at] = difference - moved - scaled;
  }

  // Of I^, which is x + gl/2 A A' - gl C/2 / n; and of dn.
  __device__ void set_inner(int i, int j, float x) {
    float& inner = m_.AA[i * kLd + j];
    if (gl_ != 0.0f) x += 0.5f * gl_ * inner;
    if (i == j) x -= 0.5f * gl_ * float(C_) * m_.inverse[i];
    inner = x;
    finite_.check(x);
    if (i == j && i < T_) store_scalar(args_.d_noise_var, b_, i, double(x));
  }

  __device__ void store_weight(int t, int k, float x) {
    const float d = x - m_.dZR[t * kLd + k];
    finite_.check(d);
    if (t < T_ && k < K_) static_cast<float*>(args_.d_weights.data)[(b_ * T_ + t) * K_ + k] = d;
  }

  // dn, dW and dU0.
  __device__ void slots() {
    const int w = block_thread() >> 5, warps = block_threads() >> 5;
    symmetrise_gradient();
    square(Along{m_.G, kLd}, Along{m_.gU, kLd}, [&](int t, int k, float x, float y) {
      change(t, k, m_.X[t * kLd + k], x);
      change(t, k + 1, m_.X[t * kLd + k + 1], y);
    });
    __syncthreads();
    square(Along{m_.G, kLd}, Along{m_.M, kLd}, [&](int i, int j, float x, float y) {
      set_inner(i, j, x);
      set_inner(i, j + 1, y);
    });
    square(Along{m_.V, kLd}, Along{m_.U, kLd}, [&](int t, int k, float x, float y) {
      store_weight(t, k, x);
      store_weight(t, k + 1, y);
    });
    __syncthreads();
    square(Along{m_.AA, kLd}, Across{m_.W, kLd}, [&](int t, int k, float x, float y) {
      float* const to = m_.X + t * kLd + k;
      store_pair(to, to[0] + x, to[1] + y);
    });
    __syncthreads();
    square(Across{m_.W, kLd}, Across{m_.X, kLd},
           [&](int i, int j, float x, float y) { store_pair(m_.M + i * kLd + j, x, y); });
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
  const int T_, K_, C_, panel_, begin_, end_;
  const Memory m_;
  float gl_ = 0.0f;
  Finite finite_;
};

}  // namespace kanerva::cuda
