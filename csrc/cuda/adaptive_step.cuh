// What adaptive_write and its gradient have in common: the address of a step, its gain, and the
// inverse of the system of addresses, kept up to date; by a team, in float64. The system is the
// smaller of R R' + lambda I (K x K) and R'R + lambda I (C x C), as in ../cpu/address_solver.h.
//   w = (R R' + lambda I)^-1 R z,  c = U w,  h = w'c,  s = h + v,  d = z - R'w,
//   R <- R + c d'/s,  U <- U - c c'/s
#pragma once

#include "spd.cuh"
#include "write_chunk.cuh"

namespace kanerva::cuda {

// Updates in a row at least; after them, or where too much cancels, the system is factorised
// afresh.
constexpr int kUpdates = 32;

// f(i) for i < n: a thread each.
template <class F>
__device__ inline void over(int n, F f) {
  for (int i = thread(); i < n; i += threads()) f(i);
}

// Sum of x_i y_i by every warp for itself: no barrier, and the same in every thread.
__device__ inline double dot(int n, const double* x, const double* y) {
  double sum = 0.0;
  for (int i = lane(); i < n; i += 32) sum += x[i] * y[i];
  return warp_sum(sum);
}

// store(i, sum over j < n of a(i, j) x_j) for i < m: a warp for each row.
template <class Store>
__device__ inline void multiply(int m, int n, Mat<double> a, const double* x, Store store) {
  for (int i = warp(); i < m; i += warps()) {
    double sum = 0.0;
    for (int j = lane(); j < n; j += 32) sum += a(i, j) * x[j];
    sum = warp_sum(sum);
    if (lane() == 0) store(i, sum);
  }
}

// store(j, sum over i < m of a(i, j) x_i) for j < n: a thread for each column.
template <class Store>
__device__ inline void multiply_transposed(int m, int n, Mat<double> a, const double* x,
                                           Store store) {
  over(n, [&](int j) {
    double sum = 0.0;
    for (int i = 0; i < m; ++i) sum += a(i, j) * x[i];
    store(j, sum);
  });
}

// Row i of item b; zero where the view is absent.
__device__ __noinline__ inline void load_row(const View& v, int64_t b, int64_t i, int n,
                                             double* to) {
  if (v.data == nullptr) return over(n, [&](int j) { to[j] = 0.0; });
  with_type(v,
            [&](auto* data) { over(n, [&](int j) { to[j] = widen(data[offset(v, b, i, j)]); }); });
}

__device__ __noinline__ inline void store_row(const View& v, int64_t b, int64_t i, int n,
                                              const double* from) {
  with_type(v, [&](auto* data) {
    over(n, [&](int j) {
      data[offset(v, b, i, j)] = narrow<std::remove_reference_t<decltype(*data)>>(from[j]);
    });
  });
}

__device__ inline bool is_finite(double x) { return x <= kInfinite && x >= -kInfinite; }

// A mean and the inverse of its system.
struct System {
  Mat<double> R, inverse;  // K x C, n x n
};

struct StepBuffers {
  double *pivots, *p, *P, *G, *H;  // n = min(K, C)
  double *z, *d, *u;               // C
  double *w, *c, *gain, *x;        // K
  Mat<double> system, factor;      // n x n
  Mat<double> U;                   // K x K
  System now, next;                // before the step; as it would be after, where it iterates

  __host__ __device__ StepBuffers(Arena& arena, int K, int C, bool iterates) {
    const int n = K < C ? K : C;
    for (double** vector : {&pivots, &p, &P, &G, &H}) *vector = arena.take<double>(n);
    for (double** vector : {&z, &d, &u}) *vector = arena.take<double>(C);
    for (double** vector : {&w, &c, &gain, &x}) *vector = arena.take<double>(K);
    now.inverse = arena.matrix<double>(n, n);
    now.R = arena.matrix<double>(K, C);
    U = arena.matrix<double>(K, K);
    system = arena.matrix<double>(n, n);
    factor = arena.matrix<double>(n, n);
    next = now;
    if (!iterates) return;
    next.inverse = arena.matrix<double>(n, n);
    next.R = arena.matrix<double>(K, C);
  }
};

// Its functions expect what they read to be synchronised and leave the team synchronised; those
// that return a bool return the same in every thread, false when the item cannot be written.
class Step {
 public:
  const StepBuffers& m;
  const int K, C;
  const bool wide;    // the K x K form
  const bool rounds;  // addresses, to float32
  const double ridge;
  double s = 0.0, h = 0.0;  // of the last gain
  double energy = 0.0;      // |d|^2

  template <class Args>
  __device__ Step(const StepBuffers& buffers, const Args& args, int64_t b)
      : m(buffers),
        K(int(args.n.K)),
        C(int(args.n.C)),
        wide(args.n.K <= args.n.C),
        rounds(args.mean.dtype == Dtype::float32),
        ridge(scalar(args.ridge, b)) {}

  // U and R of the item.
  template <class Args>
  __device__ void load_state(const Args& args, int64_t b) const {
    load_covariance(args.cov, b, K, m.U);
    load(args.mean, b, 0, 0, K, C, m.now.R);
    sync();
  }

  // Factorises the system of s.R.
  __device__ __noinline__ bool refresh(const System& s) const {
    if (!(ridge > 0.0 && ridge <= kInfinite)) return false;
    const auto store = [&](int i, int j, double x) { m.system(i, j) = x + (i == j ? ridge : 0.0); };
    if (wide) {
      product<false, true>(K, K, C, s.R, s.R, store);
    } else {
      product<true, false>(C, C, K, s.R, s.R, store);
    }
    sync();
    return invert_spd(wide ? K : C, m.system, m.factor, s.inverse, m.pivots).ok;
  }

  // w = the address of z, refined once in the K x K form. With `last` it is rounded as it will
  // be stored, so that the state is that of a write at what is stored.
  __device__ __noinline__ void solve(const System& s, bool last) const {
    const auto rounded = [&](double x) { return last && rounds ? double(float(x)) : x; };
    if (!wide) {
      multiply(C, C, s.inverse, m.z, [&](int j, double x) { m.u[j] = x; });
      sync();
      multiply(K, C, s.R, m.u, [&](int i, double x) { m.w[i] = rounded(x); });
      sync();
      return;
    }
    multiply(K, C, s.R, m.z, [&](int i, double x) { m.x[i] = x; });
    sync();
    multiply(K, K, s.inverse, m.x, [&](int i, double x) { m.w[i] = x; });
    sync();
    multiply_transposed(K, C, s.R, m.w, [&](int j, double x) { m.d[j] = m.z[j] - x; });
    sync();
    multiply(K, C, s.R, m.d, [&](int i, double x) { m.x[i] = x - ridge * m.w[i]; });
    sync();
    multiply(K, K, s.inverse, m.x, [&](int i, double x) { m.w[i] = rounded(m.w[i] + x); });
    sync();
  }

  // c, d, h, s, energy and gain = c / s of the step to w from the state before it.
  __device__ __noinline__ bool take_gain(double v) {
    multiply(K, K, m.U, m.w, [&](int i, double x) { m.c[i] = x; });
    multiply_transposed(K, C, m.now.R, m.w, [&](int j, double x) { m.d[j] = m.z[j] - x; });
    sync();
    h = dot(K, m.w, m.c);
    s = h + v;
    energy = dot(C, m.d, m.d);
    over(K, [&](int i) { m.gain[i] = m.c[i] / s; });
    sync();
    return s > 0.0 && s <= kInfinite && is_finite(energy);
  }

  // `to` = the system of from.R + gain d', by an update of rank 2, or afresh where that is asked
  // for or would cancel. `from` and `to` may be one.
  __device__ __noinline__ bool move(const System& from, const System& to, bool afresh) const {
    const int n = wide ? K : C;
    const double* g = wide ? m.gain : m.d;  // the system gains p g' + g p'
    double along_g = 0.0, along_h = 0.0;
    if (!afresh) {
      if (wide) {
        const double half = 0.5 * dot(C, m.d, m.d);
        multiply(K, C, from.R, m.d, [&](int i, double x) { m.p[i] = x + half * g[i]; });
      } else {
        const double half = 0.5 * dot(K, m.gain, m.gain);
        multiply_transposed(K, C, from.R, m.gain,
                            [&](int j, double x) { m.p[j] = x + half * g[j]; });
      }
      sync();
      multiply(n, n, from.inverse, m.p, [&](int i, double x) { m.P[i] = x; });
      multiply(n, n, from.inverse, g, [&](int i, double x) { m.G[i] = x; });
      sync();
      const double pp = dot(n, m.p, m.P), gg = dot(n, g, m.G), q = 1.0 + dot(n, m.p, m.G);
      const double det = q * q - pp * gg;
      afresh = !(det >= kCancelled * (q * q + fabs(pp * gg)) && det <= kInfinite);
      if (gg > kNothing) along_g = 1.0 / gg, along_h = along_g / det;
      over(n, [&](int i) { m.H[i] = gg * m.P[i] - q * m.G[i]; });
    }
    each(K, C, [&](int i, int j) { to.R(i, j) = from.R(i, j) + m.gain[i] * m.d[j]; });
    sync();
    if (afresh) return refresh(to);
    // Written so that it is symmetric to the last bit.
    each(n, n, [&](int i, int j) {
      const double minus = along_g * (m.G[i] * m.G[j]), plus = along_h * (m.H[i] * m.H[j]);
      to.inverse(i, j) = from.inverse(i, j) + (plus - minus);
    });
    sync();
    return true;
  }

  // now.R + gain d', and its inverse, afresh every so many steps.
  __device__ bool commit() {
    const int period = kUpdates > (wide ? K : C) ? kUpdates : (wide ? K : C);
    const bool afresh = ++age_ >= period;
    if (afresh) age_ = 0;
    return move(m.now, m.now, afresh);
  }

 private:
  // A gain whose square in the metric of the inverse is less changes nothing.
  static constexpr double kNothing = 1e-280;

  int age_ = 0;
};

}  // namespace kanerva::cuda
