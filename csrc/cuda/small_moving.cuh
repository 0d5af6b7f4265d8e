// The write of a memory of at most 64 slots that moves (`retention`), with the identity for its
// stationary covariance, by one block, in float32: what small_write.cuh is to one that keeps still.
// The algebra is that of stationary_block.cuh, with triangular solves in the place of V', in chunks
// of 32 steps; N is the renewal g_st h_s, s <= t, and B what a step has in common with the end:
//   X = W U,  S = b b' o (X W') + N o (W W') + diag(v) = F F',  B = b_L D_b X + D_n W,
//   [P E A'] = F^-1 [B, Z - D_b W R, b b' o (X Q') + N o (W Q')],  reads = D_b Q R + A E,
//   read_var_t = b_t^2 q'U q + h_t q'q - |A_t|^2,  R <- b_L R + P'E,  U <- b_L^2 U + h_L I - P'P
//
// One warp factors S while the others multiply by R, U and the queries; then a lane solves for a
// column at a time, while the last warp finds the dynamics of the next chunk. Of matrices over two
// steps what lies below the diagonal is not formed.
#pragma once

#include "small_dynamics.cuh"

namespace kanerva::cuda {

// Shared memory of a block, as SmallMemory.
template <int kSlots>
struct SmallMovingMemory {
  static constexpr int kAlong = stride_along(kSlots), kAcross = stride_across(kSlots);
  static constexpr int kFactor = stride_along(kSmallChunk), kInside = stride_across(kSmallChunk);
  static constexpr int kSums = 4 * kSmallChunk;  // floats of them

  double *logs,
      *forgotten;         // by a lane's steps: of the log evidence of a column, and sums of 1 - a
  float *U, *W;           // kSlots and kSmallChunk rows, kAlong apart
  float* X;               // kSmallChunk rows, kAcross apart; then P
  float *F, *reciprocal;  // S, then F', kFactor apart, and 1 / F(t, t)
  float* dynamics;        // Dynamics of two chunks
  float *D, *R;           // kSmallChunk and kSlots rows; D: Z, then E
  float *Q, *A, *O;       // only with reads: Q like W, A' kInside apart, D_b Q R like D
  float *var, *squares;   // likewise: q'U q and |A_t|^2
  int ld;

  // Laid out from `memory` on, which the host leaves null.
  __host__ __device__ SmallMovingMemory(float* memory, int columns)
      : logs(reinterpret_cast<double*>(memory)),
        forgotten(logs + kSmallChunk),
        U(memory + kSums),
        W(U + kSlots * kAlong),
        X(W + kSmallChunk * kAlong),
        F(X + kSmallChunk * kAcross),
        reciprocal(F + kSmallChunk * kFactor),
        dynamics(reciprocal + kSmallChunk),
        D(dynamics + 2 * Dynamics::kSize),
        R(D + kSmallChunk * stride_across(columns)),
        Q(R + kSlots * stride_across(columns)),
        A(Q + kSmallChunk * kAlong),
        O(A + kSmallChunk * kInside),
        var(O + kSmallChunk * stride_across(columns)),
        squares(var + kSmallChunk),
        ld(stride_across(columns)) {}

  static constexpr size_t bytes(int columns, bool reads) {
    const int64_t wide = stride_across(columns);  // of any memory, to learn whether it fits
    const int64_t write = kSums + (kSlots + kSmallChunk) * (kAlong + wide) +
                          kSmallChunk * (kAcross + kFactor + 1) + 2 * Dynamics::kSize;
    return sizeof(float) *
           size_t(write + (reads ? kSmallChunk * (kAlong + kInside + wide + 2) : 0));
  }
};

// x += rows i0 on of a times rows j0 on of c, and y those of b times the same, over k numbers, a
// multiple of 16: what Tiles<1, 1>::add() does, of two products whose steps do not wait for each
// other. By one warp.
__device__ inline void add_side_by_side(Tiles<1, 1>& x, Along a, Tiles<1, 1>& y, Along b, int i0,
                                        Along c, int j0, int k) {
  const int g = lane() >> 2, t = lane() & 3;
  a.data += (i0 + g) * a.ld + t;
  b.data += (i0 + g) * b.ld + t;
  c.data += (j0 + g) * c.ld + t;
#pragma unroll 1
  for (; k > 0; k -= kShortSum) {
    float part[2][4] = {}, rest[2][4] = {};
#pragma unroll
    for (int q = 0; q < kShortSum; q += 8) {
      float c_high[2], c_low[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) split(c(0, q + r * 4), c_high[r], c_low[r]);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const Along& from = m == 0 ? a : b;
        float high[4], low[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) split(from(r % 2 * 8, q + r / 2 * 4), high[r], low[r]);
        multiply_add_tf32(rest[m], low, c_high);
        multiply_add_tf32(rest[m], high, c_low);
        multiply_add_tf32(part[m], high, c_high);
      }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      x.sum[0][0][r] += part[0][r] + rest[0][r];
      y.sum[0][0][r] += part[1][r] + rest[1][r];
    }
    a.data += kShortSum, b.data += kShortSum, c.data += kShortSum;
  }
}

// The write of columns of an item; the state may be kept in float64, as beliefs between segments
// are.
template <int kSlots, class Args, class State = float>
class SmallMovingWrite : SmallColumns<kSlots, Args, SmallMovingMemory<kSlots>> {
  using Memory = SmallMovingMemory<kSlots>;
  using Base = SmallColumns<kSlots, Args, Memory>;
  using Base::args_, Base::columns_, Base::first_, Base::item_, Base::m_, Base::steps_;
  using Base::K_, Base::kAcross, Base::kAlong, Base::kFactor, Base::kHalves, Base::kHasReads;
  using Base::start_values, Base::start_weights, Base::steps_from;
  using Base::tiles_, Base::warp_, Base::warps_;
  static constexpr int kInside = Memory::kInside;
  static constexpr int kLast = kSmallChunk - 1;  // after the last step all is as after it
  static constexpr int kUpper = 6;  // tiles of 16 x 8 with something above the diagonal

 public:
  __device__ SmallMovingWrite(const Args& args, const Item& item, const ColumnBlock& columns)
      : Base(args, item, columns) {}

  // False, in every thread, where it is too hard; then nothing that was stored counts, and the
  // state is not stored. Leaves the block synchronised.
  __device__ bool run(double& evidence) {
    const int64_t T = item_.steps;
    start();
    float squares = 0.0f;
    if (warp_ == 0) m_.logs[lane()] = 0.0;
    if (warp_ == warps_ - 1) m_.forgotten[lane()] = 0.0;
    bool hard = !load_next(0);
    for (int64_t passed = 0; passed < T; passed += kSmallChunk) {
      const bool is_last = passed + kSmallChunk >= T;
      first_ = item_.first + passed;
      steps_ = steps_from(passed);
      chunk_.data = dynamics_of(passed);
      wait_for_copies<1>();  // of the values
      hard = __syncthreads_or(hard);
      if (hard) break;
      if (passed == 0) {
        symmetrise_square<kSlots>(m_.U, kAlong);
        clear_below();
        __syncthreads();
      }
      predict();
      __syncthreads();
      system();
      wait_for_copies<0>();
      __syncthreads();
      if (warp_ == 0) {
        float pivot;
        hard = !factor_easy(m_.F, kFactor, steps_, &chunk_.noise(0), m_.reciprocal, pivot);
        m_.logs[lane()] += double(chunk_.counts(lane())) * (double(logf(pivot)) + kLog2Pi);
      } else {
        innovations();
      }
      hard = __syncthreads_or(hard);
      if (hard) break;
      squares += solve();
      if (!is_last) hard = !load_next(passed + kSmallChunk);
      __syncthreads();
      if (!is_last) start_weights(passed + kSmallChunk);
      hard = !update() || hard;
      __syncthreads();
      if (!is_last) start_values(passed + kSmallChunk);
    }
    wait_for_copies<0>();  // before its memory is used for something else
    const double logs = warp_ == 0 ? m_.logs[lane()] : 0.0;
    evidence = -0.5 * block_sum(double(squares) + double(columns_.count) * logs);
    hard = hard || keeps_too_long();
    hard = __syncthreads_or(hard);
    // Values that are not finite, or whose squares overflow, show in the evidence.
    if (hard || !(evidence < kInfinite && evidence > -kInfinite)) return false;
    store();
    return true;
  }

 private:
  // As start_item() and store_state().
  __device__ void start() const {
    if constexpr (sizeof(State) == sizeof(float)) {
      this->start_item();
    } else {
      const View &cov = args_.cov, &mean = args_.mean;
      for_state(kSlots, kSlots, [&](int i, int j) {
        const bool inside = i < K_ && j < K_;
        m_.U[i * kAlong + j] = inside ? float(state(cov)[offset(cov, item_.state, i, j)]) : 0.0f;
      });
      start_weights(0);
      for_state(kSlots, 8 * tiles_, [&](int i, int j) {
        const int64_t at = offset(mean, item_.state, i, columns_.first + j);
        m_.R[i * m_.ld + j] = i < K_ && j < columns_.count ? float(state(mean)[at]) : 0.0f;
      });
      start_values(0);
    }
  }

  __device__ void store() const {
    if constexpr (sizeof(State) == sizeof(float)) {
      this->store_state();
    } else {
      const View &cov = args_.cov_out, &mean = args_.mean_out;
      for_state(K_, columns_.count, [&](int i, int j) {
        state(mean)[offset(mean, item_.state, i, columns_.first + j)] = State(m_.R[i * m_.ld + j]);
      });
      if (columns_.index != 0) return;
      for_state(K_, K_, [&](int i, int j) {
        state(cov)[offset(cov, item_.state, i, j)] = State(m_.U[i * kAlong + j]);
      });
    }
  }

  __device__ static State* state(const View& view) { return static_cast<State*>(view.data); }

  // f(i, j) for i < m, j < n, by all threads of the block.
  template <class F>
  __device__ void for_state(int m, int n, F f) const {
    for (int i = warp_; i < m; i += warps_)
      for (int j = lane(); j < n; j += 32) f(i, j);
  }

  __device__ float* dynamics_of(int64_t passed) const {
    return m_.dynamics + (passed / kSmallChunk % 2 == 0 ? 0 : Dynamics::kSize);
  }

  // The dynamics of the steps from `passed` on, by the last warp, which has the least to do when
  // others solve. False in a thread whose numbers are out of their domain.
  __device__ bool load_next(int64_t passed) const {
    if (warp_ != warps_ - 1) return true;
    return load_dynamics(args_, item_.row, item_.first + passed, steps_from(passed),
                         Dynamics{dynamics_of(passed)}, m_.forgotten[lane()]);
  }

  // Whether the steps were more than float32 can carry, given what the last warp's lanes forgot.
  __device__ bool keeps_too_long() const {
    if (item_.steps <= kLongInFloat32 || warp_ != warps_ - 1) return false;
    return warp_sum(m_.forgotten[lane()]) * double(kLongInFloat32) < double(item_.steps);
  }

  // Tiles that nobody forms: what lies there enters products with zeros.
  __device__ void clear_below() const {
    for (int e = block_thread(); e < 16 * 16; e += block_threads()) {
      m_.F[(16 + e / 16) * kFactor + e % 16] = 0.0f;
      if constexpr (kHasReads) m_.A[(16 + e / 16) * kInside + e % 16] = 0.0f;
    }
  }

  // f(job) for so many jobs, a warp each, by those from `begin` on: there and back, so that whoever
  // had the longest of a round has the shortest of the next.
  template <class F>
  __device__ void share(int jobs, int begin, F f) const {
    const int of = warps_ - begin, own = warp_ - begin;
    if (own < 0) return;
    for (int first = 0, turn = 0; first < jobs; first += of, turn ^= 1) {
      const int job = first + (turn ? of - 1 - own : own);
      if (job < jobs) f(job);
    }
  }

  // X
  __device__ void predict() const {
    multiply<2, 2>(  // U is symmetric
        Along{m_.W, kAlong}, Along{m_.U, kAlong}, kSmallChunk, kSlots / 8, kSlots,
        [&](int i, int j, float x, float y) { store_pair(m_.X + i * kAcross + j, x, y); });
  }

  // f(i, j, x, y) for the elements (i, j) and (i, j + 1) of b b' o (X Y') + N o (W Y'), of the
  // tile-th with something above the diagonal. By one warp.
  template <class F>
  __device__ void combine(int tile, const float* Y, F f) const {
    const int i0 = tile < 4 ? 0 : 16, j0 = 8 * (tile < 4 ? tile : tile - 2);
    Tiles<1, 1> before, settled;
    add_side_by_side(before, Along{m_.X, kAcross}, settled, Along{m_.W, kAlong}, i0,
                     Along{Y, kAlong}, j0, kSlots);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int i = i0 + (lane() >> 2) + r / 2 * 8, j = j0 + (lane() & 3) * 2 + r % 2;
      float& x = before.sum[0][0][r];
      x = fmaf(chunk_.kept(i) * chunk_.kept(j), x, chunk_.renewal(i, j) * settled.sum[0][0][r]);
    }
    before.each(i0, j0, f);
  }

  // S above its diagonal.
  __device__ void system() const {
    for (int tile = warp_; tile < kUpper; tile += warps_)
      combine(tile, m_.W, [&](int i, int j, float x, float y) {
        if (i == j) x += chunk_.noise(i);
        if (i == j + 1) y += chunk_.noise(i);
        store_pair(m_.F + i * kFactor + j, x, y);
      });
  }

  // D = Z - D_b W R and, with reads, D_b Q R, q'U q and A' before F^-1: by all warps but the first,
  // what takes longest first.
  __device__ void innovations() const {
    const int variances = kHasReads && columns_.index == 0 ? kSmallChunk / 16 : 0;
    const int upper = variances + (kHasReads ? kUpper : 0), wide = (tiles_ + 1) / 2;
    share(upper + (kHasReads ? 2 : 1) * wide, 1, [&](int job) {
      if (job < variances) {
        this->template prior_variances<4>(16 * job);
      } else if (job < upper) {
        combine(job - variances, m_.Q,
                [&](int i, int j, float x, float y) { store_pair(m_.A + i * kInside + j, x, y); });
      } else {
        const bool is_read = job - upper >= wide;
        multiply_mean(is_read, 2 * (job - upper - (is_read ? wide : 0)));
      }
    });
  }

  // Two tiles of columns of D_b W R or D_b Q R, by one warp.
  __device__ void multiply_mean(bool is_read, int tile) const {
    Tiles<2, 2> sum;
    sum.add(Along{is_read ? m_.Q : m_.W, kAlong}, 0, Across{m_.R, m_.ld}, 8 * tile, kSlots,
            tiles_ - tile);
    float* const to = is_read ? m_.O : m_.D;
    sum.each(
        0, 8 * tile,
        [&](int i, int j, float x, float y) {
          float* d = to + i * m_.ld + j;
          const float kept = chunk_.kept(i);
          if (is_read) {
            store_pair(d, kept * x, kept * y);
          } else {
            store_pair(d, fmaf(-kept, x, d[0]), fmaf(-kept, y, d[1]));
          }
        },
        tiles_ - tile);
  }

  // P, A' and E in the places of X, A and D, a column per lane; this thread's share of the squares
  // of E.
  __device__ float solve() const {
    float squares = 0.0f;
    constexpr int kNarrow = kHalves + (kHasReads ? 1 : 0);
    for (int c = warp_; c < kNarrow + (tiles_ + 3) / 4; c += warps_) {
      const bool is_address = c < kHalves, is_value = c >= kNarrow;
      const int j = (is_value ? c - kNarrow : is_address ? c : 0) * 32 + lane();
      if (is_value && j >= columns_.count) continue;
      float* const column = (is_value ? m_.D : is_address ? m_.X : m_.A) + j;
      const int ld = is_value ? m_.ld : is_address ? kAcross : kInside;
      // Of a query the steps up to its own.
      const int last = is_value || is_address ? kLast : lane();
      float x[kSmallChunk];
      if (is_address) {
        const float kept = chunk_.kept(kLast);
#pragma unroll
        for (int t = 0; t < kSmallChunk; ++t)
          x[t] = fmaf(kept * chunk_.kept(t), column[t * kAcross],
                      chunk_.renewal(t, kLast) * m_.W[t * kAlong + j]);
      } else {
#pragma unroll
        for (int t = 0; t < kSmallChunk; ++t) x[t] = column[t * ld];
      }
      float sum = 0.0f;
      solve_loaded(x, column, ld, m_.F, kFactor, steps_, m_.reciprocal, [&](int t, float& y) {
        if (t > last) y = 0.0f;
        sum = fmaf(y, y, sum);
      });
      if (is_value) squares += sum;
      if constexpr (kHasReads) {
        if (c == kHalves) m_.squares[lane()] = sum;
      }
    }
    return squares;
  }

  // The reads, if there are any, and the state after the chunk; whether this thread's reads are
  // finite.
  __device__ bool update() const {
    bool finite = true;
    constexpr int kStrips = kSlots / 16;  // of U, of which a job has two times 16 rows
    constexpr int kSquare = kHalves == 1 ? kStrips : 6;
    const int wide = (tiles_ + 1) / 2, mean = kSquare + kHalves * wide;
    const int reads = kHasReads ? wide : 0, variances = kHasReads && columns_.index == 0;
    share(mean + reads + variances, 0, [&](int job) {
      if (job < kSquare) {
        // With two halves the lower one has nothing above the diagonal in the first strips.
        const bool lower = job >= kStrips;
        update_covariance(lower ? 32 : 0, 16 * (lower ? job - kStrips + 2 : job));
      } else if (job < mean) {
        update_mean((job - kSquare) % kHalves * 32, (job - kSquare) / kHalves * 2);
      } else if constexpr (kHasReads) {
        finite = (job < mean + reads ? read(2 * (job - mean)) : store_read_variance()) && finite;
      }
    });
    return finite;
  }

  // Of the lane's query. Whether it is finite.
  __device__ bool store_read_variance() const {
    const int t = lane();
    if (t >= steps_) return true;
    float settled = 0.0f;
#pragma unroll 4
    for (int k = 0; k < kSlots; k += 4) {
      const auto q = *reinterpret_cast<const float4*>(m_.Q + t * kAlong + k);
      settled = fmaf(q.x, q.x, fmaf(q.y, q.y, fmaf(q.z, q.z, fmaf(q.w, q.w, settled))));
    }
    const float kept = chunk_.kept(t);
    const float left = fmaf(kept * kept, m_.var[t], chunk_.fresh(t) * settled) - m_.squares[t];
    store_variance(args_.read_var_out, item_.row, first_ + t, double(left));
    return fabsf(left) <= kLargestFloat;
  }

  // 32 rows and 16 columns of U from (i0, j0) on: what lies above the diagonal, mirrored.
  __device__ void update_covariance(int i0, int j0) const {
    const float kept = chunk_.kept(kLast), fresh = chunk_.fresh(kLast), scale = kept * kept;
    Tiles<2, 2> x;
    x.add(Across{m_.X, kAcross}, i0, Across{m_.X, kAcross}, j0, kSmallChunk);
    const auto set = [&](int i, int j, float change) {
      if (j < i) return;
      const float u = fmaf(scale, m_.U[i * kAlong + j], i == j ? fresh - change : -change);
      m_.U[i * kAlong + j] = m_.U[j * kAlong + i] = u;
    };
    x.each(i0, j0, [&](int i, int j, float x0, float x1) {
      set(i, j, x0);
      set(i, j + 1, x1);
    });
  }

  // 32 rows of R from i0 on and two tiles of its columns.
  __device__ void update_mean(int i0, int tile) const {
    const float kept = chunk_.kept(kLast);
    Tiles<2, 2> sum;
    sum.add(Across{m_.X, kAcross}, i0, Across{m_.D, m_.ld}, 8 * tile, kSmallChunk, tiles_ - tile);
    sum.each(
        i0, 8 * tile,
        [&](int i, int j, float x, float y) {
          float* r = m_.R + i * m_.ld + j;
          store_pair(r, fmaf(kept, r[0], x), fmaf(kept, r[1], y));
        },
        tiles_ - tile);
  }

  // Two tiles of columns of the reads; whether this thread's are finite.
  __device__ bool read(int tile) const {
    bool finite = true;
    const auto check = [&](float x) { finite = finite && fabsf(x) <= kLargestFloat; };
    const int64_t C = args_.n.C, row = item_.row * args_.n.T + first_;
    float* const to = static_cast<float*>(args_.reads_out.data) + row * C + columns_.first;
    Tiles<2, 2> sum;
    sum.add(Across{m_.A, kInside}, 0, Across{m_.D, m_.ld}, 8 * tile, kSmallChunk, tiles_ - tile);
    sum.each(
        0, 8 * tile,
        [&](int i, int j, float x, float y) {
          if (i >= steps_) return;
          const float* o = m_.O + i * m_.ld + j;
          x += o[0];
          y += o[1];
          check(x + y);
          if (j < columns_.count) to[i * C + j] = x;
          if (j + 1 < columns_.count) to[i * C + j + 1] = y;
        },
        tiles_ - tile);
    return finite;
  }

  Dynamics chunk_ = {nullptr};
};

}  // namespace kanerva::cuda
