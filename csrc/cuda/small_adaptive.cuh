// The Dynamic Kanerva write of a memory of at most 64 slots, and at least as many columns, by one
// block in float32.
//
// A step changes the mean by c d'/s, and its address depends on the step before. But what it needs
// of the columns are products with them: those of 32 values with the mean and with each other are
// made in tensor cores, and then the steps know slots alone. With A = R R' + lambda I, M = A^-1 and
// x_j = R z_j for every step j of the chunk, step t has
//
//   w = M x_t,  c = U w,  e_j = d'z_j = z_t'z_j - w'x_j,  f = R d = x_t - A w + lambda w,
//   h = w'c,  s = h + v,  E = |d|^2 = e_t - w'f
//   U -= c c'/s,  x_j += c e_j / s,  A += (f c' + c f')/s + E c c'/s^2
//   M += (k r r' - q (r g' + g r') - m g g') / D,  where g = M c, r = M f / s, k = c'g,
//     q = 1 + c'r, m = (E - f'M f) / s^2, D = q^2 + k m
//
// The next address is M x of the M before, with that change applied to it: it does not wait for
// the new M. Rows of M, U and A and the x_j lie in registers of warps of their own; vectors go
// through shared memory, with three barriers a step. In the end all columns solve
// d_t = z_t - R'w_t - sum over i < t of d_i (gain_i'w_t), gain = c/s, and R += gain'd.
//
// M is formed afresh for every chunk. What is worse conditioned or harder than float32 bears is
// left to whoever called.
#pragma once

#include "small_adaptive_steps.cuh"
#include "write_chunk.cuh"

namespace kanerva::cuda {

template <int kSlots>
class SmallAdaptive {
  using Memory = SmallAdaptiveMemory<kSlots>;
  static constexpr int kAlong = Memory::kAlong, kAcross = Memory::kAcross;
  static constexpr int kSquare = Memory::kSquare;
  static_assert(kSmallChunk * (kAlong + kAcross) >= kSlots * kAlong, "A fits W and gain");

 public:
  static constexpr int kThreads = AdaptiveSteps<kSlots>::kThreads;

  __device__ SmallAdaptive(const AdaptiveWriteArgs& args, int64_t b)
      : args_(args),
        b_(b),
        K_(int(args.n.K)),
        C_(int(args.n.C)),
        tiles_((C_ + 7) / 8),
        warp_(block_thread() >> 5),
        is_last_(warp_ == kThreads / 32 - 1),
        m_(reinterpret_cast<float*>(block_memory()), C_),
        ridge_(float(scalar(args.ridge, b))) {}

  // False, in every thread, when it is too hard or something is not finite; then nothing that was
  // stored counts.
  __device__ bool run() {
    const auto always = [](int) { return true; };
    start_copy(rows_of(args_.cov, b_, 0, 0), K_, K_, m_.U, kAlong, kSlots, kSlots, always);
    start_copy(rows_of(args_.mean, b_, 0, 0), K_, C_, m_.R, m_.ld, kSlots, 8 * tiles_, always);
    if (block_thread() < kSmallChunk) m_.one[block_thread()] = 1.0f;
    double evidence = 0.0;  // of this lane's steps, in the last warp
    bool good = ridge_ > 0.0f && ridge_ < 1e30f;
    for (first_ = 0; first_ < args_.n.T; first_ += kSmallChunk) {
      steps_ = int(first_ + kSmallChunk <= args_.n.T ? kSmallChunk : args_.n.T - first_);
      load_values();
      if (warp_ == 0) good = load_step() && good;
      wait_for_copies<0>();
      good = __syncthreads_and(good);
      if (!good) break;
      make_products();
      __syncthreads();
      const AdaptiveSteps<kSlots> steps(m_, K_, ridge_);
      good = steps.write(int(args_.num_iters));
      good = __syncthreads_and(good) && steps.condition_serves();
      if (!good) break;
      make_residuals();
      __syncthreads();
      if (is_last_) prepare_numbers();
      for (int j = block_thread(); j < C_; j += kThreads)
        solve_column(m_.Z + j, m_.ld, m_.X, kSquare, steps_, m_.one, [](int, float) {});
      __syncthreads();
      good = update();
      __syncthreads();
      if (is_last_) good = store_numbers(evidence) && good;
    }
    wait_for_copies<0>();
    good = store_state() && good;
    if (is_last_) {
      evidence = warp_sum(evidence);
      good = good && evidence < kInfinite && evidence > -kInfinite;
      if (lane() == 0) store_scalar(args_.log_evidence, b_, 0, evidence);
    }
    return __syncthreads_and(good);
  }

 private:
  // A bit for each step of the chunk that counts, by every warp.
  __device__ unsigned kept_steps() const {
    const int t = lane();
    const bool keeps = t < steps_ && keeps_step(args_.mask, b_, first_ + t);
    return __ballot_sync(0xffffffffu, keeps);
  }

  // Z = the values of the chunk; zero in steps that the mask leaves out.
  __device__ void load_values() const {
    const unsigned kept = kept_steps();
    const auto keeps = [=](int t) { return (kept >> t & 1) != 0; };
    const View& v = args_.values;
    if (v.dtype == Dtype::float32 && v.stride[2] == 1) {
      start_copy(rows_of(v, b_, first_, 0), steps_, C_, m_.Z, m_.ld, kSmallChunk, 8 * tiles_,
                 keeps);
    } else {
      with_type(v, [&](auto* data) {  // not unrolled: it would cost registers
#pragma unroll 1
        for (int t = warp_; t < kSmallChunk; t += kThreads / 32)
#pragma unroll 1
          for (int j = lane(); j < 8 * tiles_; j += 32) {
            const bool counts = j < C_ && keeps(t);
            m_.Z[t * m_.ld + j] = counts ? float(widen(data[offset(v, b_, first_ + t, j)])) : 0.0f;
          }
      });
    }
    end_copies();
  }

  // The numbers of the chunk's steps, by one warp. False in a lane whose noise is out of range.
  __device__ bool load_step() const {
    const int t = lane();
    const unsigned kept = kept_steps();
    if (t == 0) *m_.kept = kept;
    const float v = kept >> t & 1 ? float(scalar(args_.noise_var, b_, first_ + t)) : 1.0f;
    m_.noise[t] = v;
    return v > 1e-30f && v < 1e30f;
  }

  // A (in the place of W), X and G: of the rows of Z and R, one after another in memory, the
  // products with each other, but for those of R with Z, 32 x 16 by a warp.
  __device__ void make_products() const {
    constexpr int kAcrossAll = (kSmallChunk + kSlots) / 16, kAcrossR = kSlots / 16;
    constexpr int kDownR = kSlots / 32;
    const Along rows{m_.Z, m_.ld};
    for (int item = warp_; item < kAcrossAll + kDownR * kAcrossR; item += kThreads / 32) {
      const bool of_R = item >= kAcrossAll;
      const int rest = item - kAcrossAll;
      const int i0 = of_R ? 32 * (1 + rest % kDownR) : 0;
      const int j0 = of_R ? kSmallChunk + 16 * (rest / kDownR) : 16 * item;
      Tiles<2, 2> sum;
      sum.add(rows, i0, rows, j0, 8 * tiles_);
      const int columns = j0 < kSmallChunk ? 0 : kSmallChunk;  // where its matrix begins
      float* const to = of_R ? m_.W : columns > 0 ? m_.X : m_.G;
      const int ld = columns > 0 ? kAlong : kSquare;
      sum.each(of_R ? i0 - kSmallChunk : i0, j0 - columns, [&](int i, int j, float x, float y) {
        if (of_R && i == j) x = i < K_ ? x + ridge_ : 1.0f;
        if (of_R && i == j + 1) y = i < K_ ? y + ridge_ : 1.0f;
        store_pair(to + i * ld + j, x, y);
      });
    }
  }

  // Z - W R in the place of Z, and the products of gains and addresses.
  __device__ void make_residuals() const {
    multiply<1, 1>(
        Along{m_.gain, kAcross}, Along{m_.W, kAlong}, kSmallChunk, kSmallChunk / 8, kSlots,
        [&](int i, int j, float x, float y) { store_pair(m_.X + i * kSquare + j, x, y); });
    multiply<2, 2>(Along{m_.W, kAlong}, Across{m_.R, m_.ld}, kSmallChunk, tiles_, kSlots,
                   [&](int i, int j, float x, float y) {
                     float* z = m_.Z + i * m_.ld + j;
                     store_pair(z, z[0] - x, z[1] - y);
                   });
  }

  // R after the chunk, the addresses, and |d|^2; whether the addresses that this thread stores are
  // finite.
  __device__ bool update() const {
    multiply<2, 2>(Across{m_.gain, kAcross}, Across{m_.Z, m_.ld}, kSlots, tiles_, kSmallChunk,
                   [&](int i, int j, float x, float y) {
                     float* r = m_.R + i * m_.ld + j;
                     store_pair(r, r[0] + x, r[1] + y);
                   });
    constexpr int kRows = kSmallChunk / (kThreads / 32);  // of a warp
    float sum[kRows] = {};
    for (int j = lane(); j < C_; j += 32)
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const float d = m_.Z[(kRows * warp_ + i) * m_.ld + j];
        sum[i] = fmaf(d, d, sum[i]);
      }
#pragma unroll
    for (int i = 0; i < kRows; ++i) sum[i] = warp_sum(sum[i]);
    if (lane() == 0)
#pragma unroll
      for (int i = 0; i < kRows; ++i) m_.energy[kRows * warp_ + i] = sum[i];
    Finite finite;
    float* const weights =
        static_cast<float*>(args_.weights_out.data) + (b_ * args_.n.T + first_) * K_;
    each(steps_, K_, [&](int t, int k) {
      const float w = m_.W[t * kAlong + k];
      finite.check(w);
      weights[t * K_ + k] = w;
    });
    return finite.all();
  }

  // What the KL and the log evidence of the chunk's steps need beside |d|^2, by one warp, a step
  // per lane: KL = |d|^2 h + g, and minus the log evidence is |d|^2 s + r. Zero in steps that do
  // not count.
  __device__ void prepare_numbers() const {
    const int t = lane();
    double per_kl = 0.0, kl = 0.0, per_evidence = 0.0, evidence = 0.0;
    if (*m_.kept >> t & 1) {
      const double h = double(m_.h[t]), v = double(m_.noise[t]), s = h + v, half = 0.5 * double(C_);
      per_evidence = 0.5 / s;
      evidence = half * (log(s) + kLog2Pi);
      per_kl = per_evidence * (h / s);
      kl = half * (log1p(h / v) - h / s);
    }
    m_.h[t] = float(per_kl);
    m_.g[t] = float(kl);
    m_.s[t] = float(per_evidence);
    m_.r[t] = float(evidence);
  }

  // Whether the KL is finite.
  __device__ bool store_numbers(double& evidence) const {
    const int t = lane();
    if (t >= steps_) return true;
    const float energy = m_.energy[t], kl = fmaf(energy, m_.h[t], m_.g[t]);
    evidence -= double(fmaf(energy, m_.s[t], m_.r[t]));
    store_scalar(args_.step_kl, b_, first_ + t, double(kl));
    return fabsf(kl) < 3e38f;
  }

  // Whether what this thread stores is finite.
  __device__ bool store_state() const {
    Finite finite;
    const auto check = [&](float x) { finite.check(x); };
    store_rows(static_cast<float*>(args_.mean_out.data) + b_ * K_ * C_, C_, K_, C_, m_.R, m_.ld,
               check);
    store_rows(static_cast<float*>(args_.cov_out.data) + b_ * K_ * K_, K_, K_, K_, m_.U, kAlong,
               check);
    return finite.all();
  }

  const AdaptiveWriteArgs& args_;
  const int64_t b_;
  const int K_, C_, tiles_, warp_;
  const bool is_last_;  // of the warps
  const Memory m_;
  const float ridge_;
  int64_t first_ = 0;  // of the chunk's steps
  int steps_ = 0;      // of the chunk
};

inline SmallReadPlan plan_small(const AdaptiveWriteArgs& args, int team, const Device& device) {
  const Sizes& n = args.n;
  if (is_small(n.T, n) || n.K > n.C || args.num_iters > 1 << 30) return {};
  const size_t shared = n.K <= 32 ? SmallAdaptiveMemory<32>::bytes(int(n.C))
                                  : SmallAdaptiveMemory<64>::bytes(int(n.C));
  SmallReadPlan plan = plan_small_read(n, team, shared, device, args.mean, args.cov);
  plan.shares = 1;
  return plan;
}

template <int kSlots>
__global__ void __launch_bounds__(SmallAdaptive<kSlots>::kThreads, kSlots == 32 ? 2 : 1)
    small_adaptive_kernel(const __grid_constant__ AdaptiveWriteArgs args, int* marks) {
  const bool done = SmallAdaptive<kSlots>(args, blockIdx.x).run();
  if (block_thread() == 0) marks[blockIdx.x] = !done;
}

}  // namespace kanerva::cuda
