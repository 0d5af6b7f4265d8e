// adaptive_write, backward: one block or team per memory, in float64. The recursion runs again and
// records c, d and s of every step, and the addresses of its iterations where there are several;
// then it is undone step by step, R <- R - c d'/s and U <- U + c c'/s, in which nothing cancels.
//
// Floor: latency, as of the forward; some three times its barriers.
#include "adaptive_step.cuh"

namespace kanerva::cuda {

namespace {

struct AdjointBuffers {
  StepBuffers step;
  double *gz, *gd, *q, *e, *room;  // C; e is the residual of a solve
  double *gw, *gc, *y, *n, *v;     // K; v is the address after the iteration at hand
  Mat<double> gU, gR;              // K x K, K x C
  Mat<double> c, d, w;             // of all steps: T x K, T x C, T iterations x K or nothing
  double* s;                       // T

  __host__ __device__ AdjointBuffers(Arena& arena, const Sizes& size, int64_t num_iters)
      : step(arena, int(size.K), int(size.C), num_iters > 1) {
    for (double** vector : {&gz, &gd, &q, &e, &room}) *vector = arena.take<double>(size.C);
    for (double** vector : {&gw, &gc, &y, &n, &v}) *vector = arena.take<double>(size.K);
    gR = arena.matrix<double>(size.K, size.C);
    gU = arena.matrix<double>(size.K, size.K);
    c = arena.matrix<double>(size.T, size.K);
    d = arena.matrix<double>(size.T, size.C);
    s = arena.take<double>(size.T);
    w = arena.matrix<double>(num_iters > 1 ? size.T * num_iters : 0, size.K);
  }
};

// Functions leave the team synchronised and expect it to be.
class Adjoint {
 public:
  __device__ Adjoint(const AdaptiveWriteBackwardArgs& args, int64_t b,
                     const AdjointBuffers& buffers)
      : args_(args),
        b_(b),
        m_(buffers),
        step_(buffers.step, args, b),
        now_(buffers.step.now),
        K_(int(args.n.K)),
        C_(int(args.n.C)),
        iterations_(int(args.num_iters)) {}

  // False, in every thread, when the item is NaN.
  __device__ bool run() {
    step_.load_state(args_, b_);
    if (not_finite(K_, K_, m_.step.U) || !record() || !step_.refresh(now_)) return false;
    load_or_zero(args_.grad_cov, b_, 0, K_, K_, m_.gU);
    load_or_zero(args_.grad_mean, b_, 0, K_, C_, m_.gR);
    sync();
    symmetrise(K_, m_.gU);
    const double gl = optional_scalar(args_.grad_log_evidence, 0);
    for (int64_t t = args_.n.T - 1; t >= 0; --t) {
      if (!keeps_step(args_.mask, b_, t)) {
        fill(args_.d_values, b_, t, 0, 1, C_, 0.0);
        if (thread() == 0) store_scalar(args_.d_noise_var, b_, t, 0.0);
      } else if (!reverse(t, gl)) {
        return false;
      }
    }
    symmetrise(K_, m_.gU);
    store(args_.d_mean, b_, 0, 0, K_, C_, m_.gR);
    store(args_.d_cov, b_, 0, 0, K_, K_, m_.gU);
    if (thread() == 0) store_scalar(args_.d_ridge, b_, 0, d_ridge_);
    return true;
  }

 private:
  __device__ double optional_scalar(const View& v, int64_t i) const {
    return v.data != nullptr ? scalar(v, b_, i) : 0.0;
  }

  // The forward: at the addresses it gave or, where there are several, that it had before it
  // rounded them.
  __device__ bool record() {
    const StepBuffers& m = m_.step;
    const bool solves = iterations_ > 1;
    if (solves && !step_.refresh(now_)) return false;
    for (int64_t t = 0; t < args_.n.T; ++t) {
      if (!keeps_step(args_.mask, b_, t)) continue;
      const double v = scalar(args_.noise_var, b_, t);
      if (!(v > 0.0 && v <= kInfinite)) return false;
      load_row(args_.values, b_, t, C_, m.z);
      if (!solves) load_row(args_.weights, b_, t, K_, m.w);
      sync();
      for (int i = 0; i < iterations_; ++i) {
        if (solves) {
          step_.solve(i == 0 ? now_ : m.next, false);
          over(K_, [&](int k) { address(t, i)[k] = m.w[k]; });
        }
        if (!step_.take_gain(v)) return false;
        if (i + 1 < iterations_ && !step_.move(now_, m.next, false)) return false;
      }
      over(K_, [&](int k) { m_.c(t, k) = m.c[k]; });
      over(C_, [&](int j) { m_.d(t, j) = m.d[j]; });
      if (thread() == 0) m_.s[t] = step_.s;
      each(K_, K_, [&](int i, int j) { m.U(i, j) -= (m.c[i] * m.c[j]) / step_.s; });
      if (solves) {
        if (!step_.commit()) return false;
      } else {
        each(K_, C_, [&](int i, int j) { now_.R(i, j) += m.gain[i] * m.d[j]; });
        sync();
      }
    }
    return true;
  }

  __device__ bool reverse(int64_t t, double gl) {
    const StepBuffers& m = m_.step;
    const double v = scalar(args_.noise_var, b_, t), s = m_.s[t];
    load_row(args_.values, b_, t, C_, m.z);
    if (iterations_ > 1) {
      over(K_, [&](int k) { m.w[k] = address(t, iterations_ - 1)[k]; });
    } else {
      load_row(args_.weights, b_, t, K_, m.w);
    }
    load_row(args_.grad_weights, b_, t, K_, m_.gw);
    over(C_, [&](int j) {
      m.d[j] = m_.d(t, j);
      m_.gz[j] = 0.0;
    });
    over(K_, [&](int k) {
      m.c[k] = m_.c(t, k);
      m.gain[k] = -m.c[k] / s;
    });
    sync();
    each(K_, K_, [&](int i, int j) { m.U(i, j) += (m.c[i] * m.c[j]) / s; });
    if (!step_.commit()) return false;
    double gv = reverse_update(v, s, optional_scalar(args_.grad_step_kl, t), gl);
    for (int i = iterations_ - 2; i >= 0; --i) {
      over(K_, [&](int k) {
        m_.v[k] = m.w[k];
        m.w[k] = address(t, i)[k];
      });
      sync();
      if (!step_.take_gain(v) || !step_.move(now_, m.next, false)) return false;
      reverse_solve(m.next, m_.v);
      gv += reverse_iteration();
    }
    reverse_solve(now_, m.w);
    store_row(args_.d_values, b_, t, C_, m_.gz);
    if (thread() == 0) store_scalar(args_.d_noise_var, b_, t, gv);
    return true;
  }

  // Through R + c d'/s, U - c c'/s, the KL and the log evidence, to d, c and s. Returns the
  // gradient of v.
  __device__ __noinline__ double reverse_update(double v, double s, double gk, double gl) {
    const StepBuffers& m = m_.step;
    multiply_transposed(K_, C_, m_.gR, m.c, [&](int j, double x) { m_.gd[j] = x / s; });
    multiply(K_, C_, m_.gR, m.d, [&](int i, double x) { m_.n[i] = x / s; });
    multiply(K_, K_, m_.gU, m.c, [&](int i, double x) { m_.y[i] = x / s; });
    sync();
    const double energy = dot(C_, m.d, m.d), code = double(C_), ratio = v / s;
    double gs = (dot(K_, m.c, m_.y) - dot(K_, m.c, m_.n)) / s;
    gs += 0.5 * gk * (energy / s * (2.0 * ratio - 1.0) + code * (1.0 - ratio)) / s;
    gs -= 0.5 * gl * (code - energy / s) / s;
    const double by_d = (gk * (s - v) / s - gl) / s;
    over(C_, [&](int j) { m_.gd[j] += by_d * m.d[j]; });
    over(K_, [&](int i) { m_.gc[i] = m_.n[i] - 2.0 * m_.y[i] + gs * m.w[i]; });
    sync();
    reverse_gain(gs);
    return gs + 0.5 * gk * (code * (1.0 / s - 1.0 / v) - energy / (s * s));
  }

  // Through d = z - R'w, c = U w and s = w'c + v, of which gc has its share of s already.
  __device__ __noinline__ void reverse_gain(double gs) const {
    const StepBuffers& m = m_.step;
    multiply(K_, K_, m.U, m_.gc, [&](int i, double x) { m_.gw[i] += gs * m.c[i] + x; });
    multiply(K_, C_, now_.R, m_.gd, [&](int i, double x) { m_.gw[i] -= x; });
    over(C_, [&](int j) { m_.gz[j] += m_.gd[j]; });
    each(K_, K_,
         [&](int i, int j) { m_.gU(i, j) += 0.5 * (m_.gc[i] * m.w[j] + m.w[i] * m_.gc[j]); });
    each(K_, C_, [&](int i, int j) { m_.gR(i, j) -= m.w[i] * m_.gd[j]; });
    sync();
  }

  // Through w, the address of z in s, as in recall.cu: leaves y, q and the residual e, which is
  // that of the address before it was rounded: where the ridge is small, rounding would be most of
  // it.
  __device__ __noinline__ void reverse_solve(const System& s, const double* w) {
    const StepBuffers& m = m_.step;
    const double ridge = step_.ridge;
    if (step_.wide) {  // y = A^-1 gw, q = R'y
      multiply(K_, K_, s.inverse, m_.gw, [&](int i, double x) { m_.y[i] = x; });
      multiply_transposed(K_, C_, s.R, w, [&](int j, double x) { m_.e[j] = m.z[j] - x; });
      sync();
      multiply_transposed(K_, C_, s.R, m_.y, [&](int j, double x) { m_.q[j] = x; });
      if (step_.rounds) {
        multiply(K_, C_, s.R, m_.e, [&](int i, double x) { m.x[i] = x - ridge * w[i]; });
        sync();
        multiply(K_, K_, s.inverse, m.x, [&](int i, double x) { m_.n[i] = w[i] + x; });
        sync();
        multiply_transposed(K_, C_, s.R, m_.n, [&](int j, double x) { m_.e[j] = m.z[j] - x; });
      }
      d_ridge_ -= dot(K_, m_.y, w);
    } else {  // q = B^-1 R'gw, y = (gw - R q) / lambda; the residual is lambda B^-1 z
      multiply_transposed(K_, C_, s.R, m_.gw, [&](int j, double x) { m_.room[j] = x; });
      multiply(C_, C_, s.inverse, m.z, [&](int j, double x) { m_.e[j] = ridge * x; });
      sync();
      multiply(C_, C_, s.inverse, m_.room, [&](int j, double x) { m_.q[j] = x; });
      sync();
      multiply(K_, C_, s.R, m_.q, [&](int i, double x) { m_.y[i] = (m_.gw[i] - x) / ridge; });
      d_ridge_ -= dot(C_, m_.q, m_.e) / ridge;
    }
    sync();
    each(K_, C_, [&](int i, int j) { m_.gR(i, j) += m_.y[i] * m_.e[j] - w[i] * m_.q[j]; });
    over(C_, [&](int j) { m_.gz[j] += m_.q[j]; });
    sync();
  }

  // Through R + gain d', in which the next address was solved, to the gain, d, and the address
  // before. Returns the gradient of v.
  __device__ __noinline__ double reverse_iteration() {
    const StepBuffers& m = m_.step;
    const double s = step_.s;
    const double ed = dot(C_, m_.e, m.d), qd = dot(C_, m_.q, m.d);
    const double yg = dot(K_, m_.y, m.gain), vg = dot(K_, m_.v, m.gain);
    const double gs = -(ed * yg - qd * vg) / s;
    over(C_, [&](int j) { m_.gd[j] = m_.e[j] * yg - m_.q[j] * vg; });
    over(K_, [&](int i) {
      m_.gc[i] = (m_.y[i] * ed - m_.v[i] * qd) / s + gs * m.w[i];
      m_.gw[i] = 0.0;
    });
    sync();
    reverse_gain(gs);
    return gs;
  }

  __device__ double* address(int64_t t, int i) const { return &m_.w(int(t) * iterations_ + i, 0); }

  const AdaptiveWriteBackwardArgs& args_;
  const int64_t b_;
  const AdjointBuffers& m_;
  Step step_;
  const System& now_;
  const int K_, C_;
  const int iterations_;
  double d_ridge_ = 0.0;
};

__global__ void __launch_bounds__(256, 1)
    adaptive_write_backward_kernel(const __grid_constant__ AdaptiveWriteBackwardArgs args,
                                   const __grid_constant__ BlockPlan plan, char* workspace) {
  const int64_t b = blockIdx.x, T = args.n.T;
  const int K = int(args.n.K), C = int(args.n.C);
  Arena arena = enter(plan, workspace, b);
  const AdjointBuffers buffers(arena, args.n, args.num_iters);
  if (Adjoint(args, b, buffers).run()) return;
  sync();  // some of it may have been stored
  fill(args.d_mean, b, 0, 0, K, C, NAN);
  fill(args.d_cov, b, 0, 0, K, K, NAN);
  fill(args.d_values, b, 0, 0, T, C, NAN);
  fill(args.d_noise_var, b, 0, 0, T, 1, NAN);
  if (thread() == 0) store_scalar(args.d_ridge, b, 0, NAN);
}

BlockPlan plan_of(const AdaptiveWriteBackwardArgs& args, const Device& device) {
  const int K = int(args.n.K), C = int(args.n.C);
  const double steps = double(args.n.T) * double(args.num_iters), n = K < C ? K : C;
  return plan_block(
      args.n, device, [&](Arena& arena, int) { AdjointBuffers(arena, args.n, args.num_iters); },
      [&](int) -> Work {
        return {steps * (16.0 * K * C + 8.0 * K * K + 8.0 * n * n), 24 * steps + 2 * n + 8};
      });
}

}  // namespace

size_t adaptive_write_backward_workspace(const AdaptiveWriteBackwardArgs& args,
                                         const Device& device) {
  return workspace_of(args.n, plan_of(args, device));
}

void adaptive_write_backward(const AdaptiveWriteBackwardArgs& args, const Launch& to) {
  start(adaptive_write_backward_kernel, args, to, plan_of(args, to.device));
}

}  // namespace kanerva::cuda
