// The adjoint of a write of more slots or steps than small_adjoint.cuh takes, in float32, from the
// posterior, by a block or a team: everything is products of tiles (streams.cuh), shared out among
// the blocks, of matrices in the workspace. The formulas of small_adjoint.cuh without I^, which has
// the steps squared:
//
//   A = (Z - W R) / n,  G = W U / n                                                     | barrier
//   dZ = G gR - gl A,  X = A gR',  D = W'A                                              | barrier
//   M = G gU - X + gl C/2 W / n,  Y = X - 2 G gU - gl C/2 W / n,  V = Y - gl C/2 W / n
//   dW = V U - dZ R',  dR0 = gR - W'dZ,  dn_t = G_t M_t' + gl/2 (|A_t|^2 - C / n_t)
//   E = W'G,  F = M'W,  S = W'Y + Y'W + gl D D'                                         | barrier
//   dU0 = gU + (S + E F + F'E') / 2
//
// M, Y and V come with X, before its barrier.
#pragma once

#include "large_adjoint_memory.cuh"
#include "marks.cuh"
#include "write_chunk.cuh"

namespace kanerva::cuda {

// The products, those of a tile one after the other; each letter is a matrix of the formulas, those
// of the state before it P, and what is named first has the rows.
enum class Part : int {
  cov,
  posterior,
  mean,
  symmetric,  // W P, W U, W R; none, of gU
  X,
  moved,
  values,
  D,  // A gR', G gU; G gR; W'A
  squares,
  S,
  S_mirrored,
  weights,
  dW,
  dR,
  E,
  F,  // D D', W'Y, Y'W; dZ R', V U; W'dZ; W'G; W'M
  EF,
  FE,  // E F, F'E'
  end
};

class LargeAdjoint {
 public:
  // The team has passed `barriers` of its barriers.
  __device__ LargeAdjoint(const BayesWriteBackwardArgs& args, int64_t b, float* matrices,
                          TeamBarrier* barrier, unsigned barriers)
      : args_(args),
        b_(b),
        m_{matrices, args.n},
        inverse_(reinterpret_cast<float*>(block_memory() + sizeof(StreamMemory))),
        barrier_(barrier),
        barriers_(barriers) {}

  // False, in every thread of some block, when it is too hard, an input is out of its domain or a
  // gradient not finite; then nothing that was stored counts. Leaves the team synchronised.
  __device__ bool run() {
    bool easy = begin();  // the same in all blocks, as is the next
    for (Part part = Part::cov; easy && part < Part::end; part = after(part)) {
      if (part == Part::X || part == Part::squares || part == Part::EF) {
        meet();
        if (part == Part::X) easy = !shrinks_much();
        if (part == Part::EF) noise();
      }
      if (easy) tiles(part);
    }
    meet();
    return __syncthreads_and(easy && finite_.all());
  }

  __device__ unsigned barriers() const { return barriers_; }

 private:
  __device__ int T() const { return int(args_.n.T); }
  __device__ int K() const { return int(args_.n.K); }
  __device__ int C() const { return int(args_.n.C); }

  __device__ void meet() {
    if (alone()) {
      __syncthreads();
    } else {
      team_barrier(*barrier_, barriers_++, false);
    }
    turn_ = 0;
  }

  // After it the compiler knows of no address that it has computed before: kept in registers from
  // one product to the next, they would be spilled.
  __device__ void forget() { asm volatile("" : "+l"(b_), "+r"(m_.first)); }

  // The first part of the tiles after those of `part`.
  __device__ static Part after(Part part) {
    const int of_tile =
        part == Part::squares                                                               ? 3
        : part == Part::cov || part == Part::X || part == Part::weights || part == Part::EF ? 2
                                                                                            : 1;
    return Part(int(part) + of_tile);
  }

  // The tiles of `part` and of those parts that have the same: block after block takes one, from
  // where the last such call left off.
  __device__ void tiles(Part part) {
    const bool of_steps = part == Part::cov || part == Part::mean || part == Part::X ||
                          part == Part::values || part == Part::weights;
    const bool of_columns =
        part == Part::mean || part == Part::values || part == Part::D || part == Part::dR;
    const bool upper = part == Part::squares || part == Part::EF;
    if (part == Part::symmetric && args_.grad_cov.data == nullptr) return;
    if (part == Part::D && gl_ == 0.0f) return;
    const int rows = of_steps ? T() : K(), columns = of_columns ? C() : K();
#pragma unroll 1
    for (int i0 = 0; i0 < rows; i0 += kStreamSide)
#pragma unroll 1
      for (int j0 = upper ? i0 : 0; j0 < columns; j0 += kStreamSide) {
        if (turn_ == block_rank()) do_tile(part, i0, j0);
        turn_ = turn_ + 1 < blocks() ? turn_ + 1 : 0;
      }
  }

  __device__ void do_tile(Part first, int i0, int j0) {
    if (first == Part::symmetric) return symmetrise_tile(i0, j0);
#pragma unroll 1
    for (Part part = first; part < after(first); part = Part(int(part) + 1)) {
      forget();
      multiply_streams(i0, j0, [&] { return product(part); });
      forget();
      finish(part, i0, j0);
    }
  }

  // Factors: rows of numbers that lie side by side or, `across`, as many columns.
  __device__ static Source along(const float* data, int64_t ld, int rows) {
    return {{data, ld}, rows, false};
  }
  __device__ static Source across(const float* data, int64_t ld, int rows) {
    return {{data, ld}, rows, true};
  }
  __device__ Source given(const View& v, int rows, bool is_across) const {
    return {rows_of(v, b_, 0, 0), rows, is_across};
  }
  // Of a matrix in the workspace with as many columns as there are slots, or columns.
  __device__ Source slots_along(const float* data, int rows) const {
    return along(data, m_.slots(), rows);
  }
  __device__ Source slots_across(const float* data) const { return across(data, m_.slots(), K()); }

  __device__ Product product(Part part) const {
    const bool of_mean = args_.grad_mean.data != nullptr, of_cov = args_.grad_cov.data != nullptr;
    const View& gR = of_mean ? args_.grad_mean : args_.mean;
    const float* const dZ = result(args_.d_values, T(), C());
    const Source W = slots_across(m_.W());
    switch (part) {
      case Part::cov:
        return {given(args_.weights, T(), false), given(args_.cov, K(), false), K(), 0.0f};
      case Part::posterior:
        return {given(args_.weights, T(), false), given(args_.posterior_cov, K(), false), K(),
                0.0f};
      case Part::mean:
        return {given(args_.weights, T(), false), given(args_.posterior_mean, C(), true), K(),
                0.0f};
      case Part::X:
        return {along(m_.A(), m_.columns(), T()), given(gR, K(), false), of_mean ? C() : 0, 0.0f};
      case Part::moved:
        return {slots_along(m_.G(), T()), slots_along(m_.gU(), K()), of_cov ? K() : 0, 0.0f};
      case Part::values:
        return {slots_along(m_.G(), T()), given(gR, C(), true), of_mean ? K() : 0, 0.0f};
      case Part::D:
        return {W, across(m_.A(), m_.columns(), C()), T(), 0.0f};
      case Part::squares: {
        const Source D = along(m_.D(), m_.columns(), K());
        return {D, D, gl_ != 0.0f ? C() : 0, 0.0f};
      }
      case Part::S:
        return {W, slots_across(m_.Y()), T(), gl_};
      case Part::S_mirrored:
        return {slots_across(m_.Y()), W, T(), 1.0f};
      case Part::weights:
        return {along(dZ, C(), T()), given(args_.posterior_mean, K(), false), C(), 0.0f};
      case Part::dW:
        return {slots_along(m_.V(), T()), given(args_.posterior_cov, K(), false), K(), -1.0f};
      case Part::dR:
        return {W, across(dZ, C(), C()), T(), 0.0f};
      case Part::E:
        return {W, slots_across(m_.G()), T(), 0.0f};
      case Part::F:
        return {W, slots_across(m_.M()), T(), 0.0f};
      case Part::EF:
        return {slots_along(m_.E(), K()), slots_along(m_.F(), K()), K(), 0.0f};
      default:
        return {slots_along(m_.F(), K()), slots_along(m_.E(), K()), K(), 1.0f};
    }
  }

  // Stores what the tile at (i0, j0) has after `part`.
  __device__ void finish(Part part, int i0, int j0) {
    switch (part) {
      case Part::cov:
        return shares_of_variances(i0, j0, m_.before());
      case Part::posterior:
        shares_of_variances(i0, j0, m_.after());
        return store_gains(i0, j0);
      case Part::mean:
        return store_innovations(i0, j0);
      case Part::X:
        return keep_tile(i0, T(), j0, K(), m_.M(), m_.slots());
      case Part::moved:
        return store_changes(i0, j0);
      case Part::values:
        return store_values(i0, j0);
      case Part::D:
        return keep_tile(i0, K(), j0, C(), m_.D(), m_.columns());
      case Part::S_mirrored:
        return keep_tile(i0, K(), j0, K(), m_.S(), m_.slots());
      case Part::dW:
        return store_weights(i0, j0);
      case Part::dR:
        return store_mean(i0, j0);
      case Part::E:
        return keep_tile(i0, K(), j0, K(), m_.E(), m_.slots());
      case Part::F:
        return keep_tile(i0, K(), j0, K(), m_.F(), m_.slots());
      case Part::FE:
        return store_cov(i0, j0);
      default:  // the next adds to it
        return;
    }
  }

  __device__ float* result(const View& v, int rows, int columns) const {
    return static_cast<float*>(v.data) + b_ * rows * columns;
  }

  // Row i from column j on of a gradient, of which those before `end` count.
  __device__ void store_gradient(float* to, int i, int j, int end, const Four& x) {
#pragma unroll
    for (int r = 0; r < 4; ++r)
      if (j + r < end) finite_.check(x.x[r]);
    store_four(to, end, i, j, end, x);
  }

  // False, in every thread, where a noise variance is out of its domain.
  __device__ bool begin() {
    if (args_.grad_log_evidence.data != nullptr) gl_ = float(scalar(args_.grad_log_evidence, b_));
    bool bad = false;
    for (int t = block_thread(); t < T(); t += block_threads()) {
      const bool kept = keeps_step(args_.mask, b_, t);
      const double v = kept ? scalar(args_.noise_var, b_, t) : 1.0;
      bad = bad || !(v > 0.0 && v <= kLargestNoise);
      inverse_[t] = kept ? float(1.0 / v) : 0.0f;
    }
    return !__syncthreads_or(bad);
  }

  // The part that slots j0 on have in w'x of steps i0 on, for rows x of the tile.
  __device__ void shares_of_variances(int i0, int j0, float* to) const {
    constexpr int kWarps = kStreamThreads / 32, kRows = kStreamSide / kWarps;
    const Rows W = rows_of(args_.weights, b_, i0, j0);
    const int warp = block_thread() >> 5, left = K() - j0;
    float share[kRows];
#pragma unroll
    for (int q = 0; q < kRows; ++q) {
      const int i = warp + q * kWarps;
      const float* const row = W.data + i * W.row;
      const float* const x = stream_memory().tile + i * StreamMemory::kTile;
      share[q] = 0.0f;
      if (i0 + i >= T()) continue;
      if (lane() < left) share[q] = row[lane()] * x[lane()];
      if (lane() + 32 < left) share[q] = fmaf(row[lane() + 32], x[lane() + 32], share[q]);
    }
#pragma unroll
    for (int q = 0; q < kRows; ++q) {
      share[q] = warp_sum(share[q]);
      const int t = i0 + warp + q * kWarps;
      if (lane() == 0 && t < T()) to[j0 / kStreamSide * T() + t] = share[q];
    }
  }

  // Whether a step leaves too little of its variance.
  __device__ bool shrinks_much() const {
    bool much = false;
    for (int t = block_thread(); t < T(); t += block_threads()) {
      float before = 0.0f, after = 0.0f;
      for (int tile = 0; tile < stream_tiles(K()); ++tile) {
        before += m_.before()[tile * T() + t];
        after += m_.after()[tile * T() + t];
      }
      much = much || (inverse_[t] > 0.0f && (!(before >= 0.0f && after >= 0.0f) ||
                                             !(before <= float(kShrinkForFloat32) * after)));
    }
    return __syncthreads_or(much);
  }

  // G, and W without what the mask leaves out.
  __device__ void store_gains(int i0, int j0) const {
    const Rows W = rows_of(args_.weights, b_, 0, 0);
    finish_tile(
        i0, T(), j0, K(), [&](int t, int k) { return load_four(W, t, k, K()); },
        [&](int t, int k, Four x, Four w) {
          const float inverse = inverse_[t];
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            x.x[r] = inverse > 0.0f ? inverse * x.x[r] : 0.0f;
            w.x[r] = inverse > 0.0f ? w.x[r] : 0.0f;
          }
          store_four(m_.G() + t * m_.slots() + k, x);
          store_four(m_.W() + t * m_.slots() + k, w);
        });
  }

  // A
  __device__ void store_innovations(int i0, int j0) const {
    const Rows Z = rows_of(args_.values, b_, 0, 0);
    finish_tile(
        i0, T(), j0, C(), [&](int t, int c) { return load_four(Z, t, c, C()); },
        [&](int t, int c, Four x, const Four& z) {
          const float inverse = inverse_[t];
#pragma unroll
          for (int r = 0; r < 4; ++r) x.x[r] = inverse > 0.0f ? inverse * (z.x[r] - x.x[r]) : 0.0f;
          store_four(m_.A() + t * m_.columns() + c, x);
        });
  }

  // gU = (gU + gU') / 2
  __device__ void symmetrise_tile(int i0, int j0) const {
    const Rows gU = rows_of(args_.grad_cov, b_, 0, 0);
    const auto load = [&](int i, int j) { return load_four(gU, i, j, K()); };
    __syncthreads();
    finish_tile(j0, K(), i0, K(), load, [&](int j, int i, const Four&, const Four& x) {
      store_four(stream_memory().tile + (j - j0) * StreamMemory::kTile + i - i0, x);
    });
    __syncthreads();
    finish_tile(i0, K(), j0, K(), load, [&](int i, int j, const Four&, Four x) {
      const Four mirrored = column_of_tile(j - j0, i - i0, K() - j0);
#pragma unroll
      for (int r = 0; r < 4; ++r) x.x[r] = 0.5f * (x.x[r] + mirrored.x[r]);
      store_four(m_.gU() + i * m_.slots() + j, x);
    });
  }

  // Four rows of the tile, from i on, in column j; of `rows` that there are.
  __device__ static Four column_of_tile(int i, int j, int rows) {
    Four x = {};
#pragma unroll
    for (int r = 0; r < 4; ++r)
      if (i + r < rows) x.x[r] = stream_memory().tile[(i + r) * StreamMemory::kTile + j];
    return x;
  }

  __device__ void keep_tile(int i0, int rows, int j0, int columns, float* to, int ld) const {
    finish_tile(
        i0, rows, j0, columns, [](int, int) { return 0; },
        [&](int i, int j, const Four& x, int) { store_four(to + i * ld + j, x); });
  }

  // M, V and Y from X, which M is so far.
  __device__ void store_changes(int i0, int j0) {
    struct Both {
      Four x, w;
    };
    const int ld = m_.slots(), next = T() * ld;  // from M to V to Y
    float* const M = m_.M();
    const float* const W = m_.W();
    const float half_evidence = 0.5f * gl_ * float(C());
    finish_tile(
        i0, T(), j0, K(),
        [&](int t, int k) { return Both{load_four(M + t * ld + k), load_four(W + t * ld + k)}; },
        [&](int t, int k, const Four& moved, const Both& old) {
          const float scale = half_evidence * inverse_[t];
          Four x;
          float* const place = M + t * ld + k;
#pragma unroll
          for (int r = 0; r < 4; ++r) x.x[r] = scale * old.w.x[r] - (old.x.x[r] - moved.x[r]);
          store_four(place, x);
#pragma unroll
          for (int r = 0; r < 4; ++r) x.x[r] = -x.x[r] - moved.x[r];
          store_four(place + 2 * next, x);
#pragma unroll
          for (int r = 0; r < 4; ++r) x.x[r] -= scale * old.w.x[r];
          store_four(place + next, x);
        });
  }

  __device__ void store_values(int i0, int j0) {
    float* const d_values = result(args_.d_values, T(), C());
    finish_tile(
        i0, T(), j0, C(), [&](int t, int c) { return load_four(m_.A() + t * m_.columns() + c); },
        [&](int t, int c, Four x, const Four& a) {
#pragma unroll
          for (int r = 0; r < 4; ++r) x.x[r] -= gl_ * a.x[r];
          store_gradient(d_values, t, c, C(), x);
        });
  }

  __device__ void store_weights(int i0, int j0) {
    float* const d_weights = result(args_.d_weights, T(), K());
    finish_tile(
        i0, T(), j0, K(), [](int, int) { return 0; },
        [&](int t, int k, const Four& x, int) { store_gradient(d_weights, t, k, K(), x); });
  }

  __device__ void store_mean(int i0, int j0) {
    const bool of_mean = args_.grad_mean.data != nullptr;
    const Rows gR = rows_of(of_mean ? args_.grad_mean : args_.mean, b_, 0, 0);
    float* const d_mean = result(args_.d_mean, K(), C());
    finish_tile(
        i0, K(), j0, C(), [&](int k, int c) { return of_mean ? load_four(gR, k, c, C()) : Four{}; },
        [&](int k, int c, Four x, const Four& g) {
#pragma unroll
          for (int r = 0; r < 4; ++r) x.x[r] = g.x[r] - x.x[r];
          store_gradient(d_mean, k, c, C(), x);
        });
  }

  // dU0: above the diagonal, and mirrored, over what the tile had below it.
  __device__ void store_cov(int i0, int j0) {
    struct Both {
      Four s, g;
    };
    const bool of_cov = args_.grad_cov.data != nullptr;
    float* const d_cov = result(args_.d_cov, K(), K());
    finish_tile(
        i0, K(), j0, K(),
        [&](int i, int j) {
          const int at = i * m_.slots() + j;
          return Both{load_four(m_.S() + at), of_cov ? load_four(m_.gU() + at) : Four{}};
        },
        [&](int i, int j, Four x, const Both& other) {
          forget();
#pragma unroll
          for (int r = 0; r < 4; ++r) x.x[r] = fmaf(0.5f, other.s.x[r] + x.x[r], other.g.x[r]);
          store_four(stream_memory().tile + (i - i0) * StreamMemory::kTile + j - j0, x);
          store_gradient(d_cov, i, j, K(), x);
        });
    __syncthreads();
    finish_tile(
        j0, K(), i0, K(), [](int, int) { return 0; },
        [&](int j, int i, const Four&, int) {
          store_four(d_cov, K(), j, i, j, column_of_tile(i - i0, j - j0, K() - i0));
        });
  }

  // dn, a step by a warp.
  __device__ void noise() {
    for (int t = warp(); t < T(); t += warps()) {
      float sum = 0.0f, squares = 0.0f;
#pragma unroll 4
      for (int k = lane(); k < K(); k += 32)
        sum = fmaf(m_.G()[t * m_.slots() + k], m_.M()[t * m_.slots() + k], sum);
      if (gl_ != 0.0f) {
#pragma unroll 4
        for (int c = lane(); c < C(); c += 32) {
          const float a = m_.A()[t * m_.columns() + c];
          squares = fmaf(a, a, squares);
        }
      }
      sum = warp_sum(sum) + 0.5f * gl_ * (warp_sum(squares) - float(C()) * inverse_[t]);
      finite_.check(sum);
      if (lane() == 0) store_scalar(args_.d_noise_var, b_, t, double(sum));
    }
  }

  const BayesWriteBackwardArgs& args_;
  int64_t b_;
  LargeAdjointBuffers m_;
  float* const inverse_;  // 1 / n_t; 0 where the mask leaves the step out
  TeamBarrier* const barrier_;
  unsigned barriers_;
  int turn_ = 0;  // the block that takes the next tile
  float gl_ = 0.0f;
  Finite finite_;
};

}  // namespace kanerva::cuda
