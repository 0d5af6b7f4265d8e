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
// the new M. Rows of M, U and A and the x_j lie in registers, a warp each (M, U and A: two for 64
// slots); vectors go through shared memory, with three barriers a step. In the end all columns
// solve d_t = z_t - R'w_t - sum over s < t of d_s (gain_s'w_t), gain = c/s, and R += gain' d.
//
// M is formed afresh for every chunk. What is worse conditioned or harder than float32 bears is
// left to whoever called.
#pragma once

#include "small_read.cuh"
#include "write_chunk.cuh"

namespace kanerva::cuda {

// All of it in float32, so less than kTrackedInFloat32 and kHardStepInFloat32: up to these the
// error is that of the plain recursion in float32.
constexpr float kTrackedAllInFloat32 = 16.0f;
constexpr float kHardStepAllInFloat32 = 1e3f;
constexpr float kLeastDeterminant = 0.1f;  // D, the ratio of the determinants of A

// Shared memory of a block; kSlots is 32 or 64. Padded with zeros.
template <int kSlots>
struct SmallAdaptiveMemory {
  static constexpr int kAlong = stride_along(kSlots), kAcross = stride_across(kSlots);
  static constexpr int kSquare = stride_along(kSmallChunk);
  static constexpr int kVectors = 7, kNumbers = 7;

  float* U;                     // kSlots rows, kAlong apart
  float* X;                     // x_j in kSmallChunk rows like these; then gain_t'w_j, as G
  float *W, *gain;              // rows w_t and c_t / s_t, kAcross apart; before, A, like U
  float* G;                     // z_i'z_j, kSquare apart
  float *c, *f, *x, *g, *r, *y;  // of slots; x: that of the next address, y = M x, r: s r
  float *largest;               // diagonals of A and M, by the warps; its end: 1 / s and E
  float *noise, *h, *s, *energy, *one, *e;  // of kSmallChunk steps
  unsigned* kept;               // a bit for each step that counts
  float *Z, *R;                 // kSmallChunk and kSlots rows of columns, ld apart; Z, then d
  int ld;

  // Laid out from `memory` on, which the host leaves null.
  __host__ __device__ SmallAdaptiveMemory(float* memory, int columns)
      : U(memory),
        X(U + kSlots * kAlong),
        W(X + kSmallChunk * kAlong),
        gain(W + kSmallChunk * kAlong),
        G(gain + kSmallChunk * kAcross),
        c(G + kSmallChunk * kSquare),
        f(c + kSlots),
        x(f + kSlots),
        g(x + kSlots),
        r(g + kSlots),
        y(r + kSlots),
        largest(y + kSlots),
        noise(largest + kSlots),
        h(noise + kSmallChunk),
        s(h + kSmallChunk),
        energy(s + kSmallChunk),
        one(energy + kSmallChunk),
        e(one + kSmallChunk),
        kept(reinterpret_cast<unsigned*>(e + kSmallChunk)),
        Z(e + 2 * kSmallChunk),
        R(Z + kSmallChunk * stride_across(columns)),
        ld(stride_across(columns)) {}

  static constexpr size_t bytes(int columns) {
    const int64_t wide = stride_across(columns);  // of any memory, to learn whether it fits
    const int64_t rest = kSlots * (kAlong + kVectors) +
                         kSmallChunk * (2 * kAlong + kAcross + kSquare + kNumbers);
    return sizeof(float) * size_t(rest + (kSlots + kSmallChunk) * wide);
  }
};

template <int kSlots>
class SmallAdaptive {
  using Memory = SmallAdaptiveMemory<kSlots>;
  static constexpr int kAlong = Memory::kAlong, kAcross = Memory::kAcross;
  static constexpr int kSquare = Memory::kSquare;
  static constexpr int kHalves = kSlots / 32;
  static_assert(kSmallChunk * (kAlong + kAcross) >= kSlots * kAlong, "A fits W and gain");

  // What a warp has in its registers: 32 rows of M, of U or of A, or the x_j.
  enum class Role { inverse, covariance, system, products, none };

 public:
  static constexpr int kThreads = 128 * kHalves;

  __device__ SmallAdaptive(const AdaptiveWriteArgs& args, int64_t b)
      : args_(args),
        b_(b),
        K_(int(args.n.K)),
        C_(int(args.n.C)),
        tiles_((C_ + 7) / 8),
        warp_(block_thread() >> 5),
        role_(warp_ > 3 * kHalves ? Role::none : Role(warp_ / kHalves)),
        slot_(warp_ % kHalves * 32 + lane()),
        m_(reinterpret_cast<float*>(block_memory()), C_),
        ridge_(float(scalar(args.ridge, b))) {}

  // False, in every thread, when it is too hard or something is not finite; then nothing that was
  // stored counts.
  __device__ bool run() {
    const auto always = [](int) { return true; };
    start_copy(rows_of(args_.cov, b_, 0, 0), K_, K_, m_.U, kAlong, kSlots, kSlots, always);
    start_copy(rows_of(args_.mean, b_, 0, 0), K_, C_, m_.R, m_.ld, kSlots, 8 * tiles_, always);
    if (block_thread() < kSmallChunk) m_.one[block_thread()] = 1.0f;
    double evidence = 0.0;  // this lane's steps, in the first warp
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
      good = write_steps() && good;
      good = __syncthreads_and(good);
      if (!good) break;
      make_differences();
      good = update();
      __syncthreads();
      if (warp_ == 0) good = store_numbers(evidence) && good;
    }
    wait_for_copies<0>();
    __syncthreads();
    good = store_state() && good;
    if (warp_ == 0) {
      evidence = warp_sum(evidence);
      good = good && evidence < kInfinite && evidence > -kInfinite;
      if (lane() == 0) store_scalar(args_.log_evidence, b_, 0, evidence);
    }
    return __syncthreads_and(good);
  }

 private:
  // Z = the values of the chunk; zero in steps that the mask leaves out.
  __device__ void load_values() const {
    const auto keeps = [&](int t) { return keeps_step(args_.mask, b_, first_ + t); };
    const View& v = args_.values;
    if (v.dtype == Dtype::float32 && v.stride[2] == 1) {
      start_copy(rows_of(v, b_, first_, 0), steps_, C_, m_.Z, m_.ld, kSmallChunk, 8 * tiles_,
                 keeps);
    } else {
      with_type(v, [&](auto* data) {
        each(kSmallChunk, 8 * tiles_, [&](int t, int j) {
          const bool counts = t < steps_ && j < C_ && keeps(t);
          m_.Z[t * m_.ld + j] =
              counts ? float(widen(data[offset(v, b_, first_ + t, j)])) : 0.0f;
        });
      });
    }
    end_copies();
  }

  // The numbers of the chunk's steps, by one warp. False in a lane whose noise is out of range.
  __device__ bool load_step() const {
    const int t = lane();
    const bool keeps = t < steps_ && keeps_step(args_.mask, b_, first_ + t);
    const unsigned kept = __ballot_sync(0xffffffffu, keeps);
    if (t == 0) *m_.kept = kept;
    const float v = keeps ? float(scalar(args_.noise_var, b_, first_ + t)) : 1.0f;
    m_.noise[t] = v;
    return v > 1e-30f && v < 1e30f;
  }

  // A (in the place of W), X and G.
  __device__ void make_products() const {
    const Along R{m_.R, m_.ld}, Z{m_.Z, m_.ld};
    const int depth = 8 * tiles_;
    multiply<2, 2>(R, R, kSlots, kSlots / 8, depth, [&](int i, int j, float x, float y) {
      if (i == j) x = i < K_ ? x + ridge_ : 1.0f;
      if (i == j + 1) y = i < K_ ? y + ridge_ : 1.0f;
      store_pair(m_.W + i * kAlong + j, x, y);
    });
    multiply<2, 2>(Z, R, kSmallChunk, kSlots / 8, depth, [&](int i, int j, float x, float y) {
      store_pair(m_.X + i * kAlong + j, x, y);
    });
    multiply<2, 2>(Z, Z, kSmallChunk, kSmallChunk / 8, depth, [&](int i, int j, float x, float y) {
      store_pair(m_.G + i * kSquare + j, x, y);
    });
  }

  // f(four numbers of a vector in shared memory, their index), for all of them.
  template <class F>
  __device__ static void each_four(const float* vector, F f) {
#pragma unroll
    for (int j = 0; j < kSlots; j += 4) {
      const auto four = *reinterpret_cast<const float4*>(vector + j);
      f(j, four.x);
      f(j + 1, four.y);
      f(j + 2, four.z);
      f(j + 3, four.w);
    }
  }

  __device__ static void load_row(const float* from, float (&row)[kSlots]) {
    each_four(from, [&](int j, float x) { row[j] = x; });
  }

  __device__ static void store_row(const float (&row)[kSlots], float* to) {
#pragma unroll
    for (int j = 0; j < kSlots; j += 4)
      *reinterpret_cast<float4*>(to + j) = {row[j], row[j + 1], row[j + 2], row[j + 3]};
  }

  __device__ static float dot(const float (&row)[kSlots], const float* vector) {
    float sum[4] = {};
    each_four(vector, [&](int j, float x) { sum[j % 4] = fmaf(row[j], x, sum[j % 4]); });
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }

  // Products of two pairs of vectors in shared memory with the same first one, the same in all
  // threads.
  __device__ static void dots(const float* a, const float* b0, const float* b1, float& ab0,
                              float& ab1) {
    float sum0[4] = {}, sum1[4] = {};
#pragma unroll
    for (int j = 0; j < kSlots; j += 4) {
      const auto x = *reinterpret_cast<const float4*>(a + j);
      const auto y = *reinterpret_cast<const float4*>(b0 + j);
      const auto z = *reinterpret_cast<const float4*>(b1 + j);
      sum0[0] = fmaf(x.x, y.x, sum0[0]), sum1[0] = fmaf(x.x, z.x, sum1[0]);
      sum0[1] = fmaf(x.y, y.y, sum0[1]), sum1[1] = fmaf(x.y, z.y, sum1[1]);
      sum0[2] = fmaf(x.z, y.z, sum0[2]), sum1[2] = fmaf(x.z, z.z, sum1[2]);
      sum0[3] = fmaf(x.w, y.w, sum0[3]), sum1[3] = fmaf(x.w, z.w, sum1[3]);
    }
    ab0 = (sum0[0] + sum0[1]) + (sum0[2] + sum0[3]);
    ab1 = (sum1[0] + sum1[1]) + (sum1[2] + sum1[3]);
  }

  // Rows of A become those of M, by Gauss and Jordan without pivoting; a row rotates by one for
  // every pivot, so that its number of the pivot's column is the first. All threads come along.
  __device__ bool invert(float (&row)[kSlots]) const {
    const bool mine = role_ == Role::inverse;
    bool good = true;
    const auto publish = [&](int t) {
      if (!mine || slot_ != t) return;
      store_row(row, t % 2 == 0 ? m_.g : m_.r);
#pragma unroll
      for (int j = 0; j < kSlots; ++j) row[j] = 0.0f;
    };
    publish(0);
#pragma unroll 1
    for (int t = 0; t < kSlots; ++t) {
      __syncthreads();
      if (!mine) continue;
      const float* const pivot = t % 2 == 0 ? m_.g : m_.r;
      const float d = pivot[0];
      good = good && d > 1e-30f && d < 1e30f;
      const float factor = (slot_ == t ? -1.0f : row[0]) * approximate_reciprocal(d);
      each_four(pivot, [&](int j, float x) {
        if (j > 0) row[j - 1] = fmaf(-factor, x, row[j]);
      });
      row[kSlots - 1] = -factor;
      publish(t + 1);
    }
    __syncthreads();
    return good;
  }

  // W, gain, h and s of the chunk's steps, and U after them; false in some thread where it is too
  // hard. Leaves what is in shared memory to be synchronised.
  __device__ bool write_steps() {
    float row[kSlots];
    float diagonal = 0.0f;
    if (role_ == Role::covariance) {
      load_row(m_.U + slot_ * kAlong, row);
#pragma unroll
      for (int j = 0; j < kSlots; ++j) row[j] = 0.5f * (row[j] + m_.U[j * kAlong + slot_]);
    } else if (role_ == Role::products) {
      load_row(m_.X + lane() * kAlong, row);
    } else if (role_ != Role::none) {
      load_row(m_.W + slot_ * kAlong, row);
      diagonal = m_.W[slot_ * (kAlong + 1)];
    }
    bool good = invert(row);
    if (role_ == Role::inverse) {
#pragma unroll
      for (int j = 0; j < kSlots; ++j) diagonal = slot_ == j ? row[j] : diagonal;
    }
    float largest = diagonal;
    for (int i = block_thread(); i < kSmallChunk * (kAlong + kAcross); i += kThreads)
      m_.W[i] = 0.0f;
    unsigned left = *m_.kept;
    int t = __ffs(int(left)) - 1;
    if (role_ == Role::products && lane() == t) store_row(row, m_.x);
    __syncthreads();
    float own = 0.0f;  // of x_t, of rows of A
    float of_r = 0.0f, of_g = 0.0f;
    bool moves = false;  // whether M is to change by of_r times r and of_g times g
    if (left != 0) {
      if (role_ == Role::inverse) m_.W[t * kAlong + slot_] = dot(row, m_.x);
      own = m_.x[slot_];
    }
    while (left != 0) {
      left &= left - 1;
      const int next = left != 0 ? __ffs(int(left)) - 1 : t;
      for (int64_t i = 1; i <= args_.num_iters; ++i) {
        const bool last = i == args_.num_iters;
        const int target = last ? next : t;  // whose address comes next
        const float* const w = m_.W + t * kAlong;
        __syncthreads();
        float c = 0.0f, f = 0.0f, e = 0.0f;
        if (role_ == Role::inverse) {
          if (moves) {
            each_four(m_.r, [&](int j, float x) { row[j] = fmaf(of_r, x, row[j]); });
            each_four(m_.g, [&](int j, float x) { row[j] = fmaf(of_g, x, row[j]); });
          }
        } else if (role_ == Role::covariance) {
          m_.c[slot_] = c = dot(row, w);
        } else if (role_ == Role::system) {
          m_.f[slot_] = f = fmaf(ridge_, w[slot_], own - dot(row, w));
        } else if (role_ == Role::products) {
          m_.e[lane()] = e = m_.G[t * kSquare + lane()] - dot(row, w);
          if (lane() == target) store_row(row, m_.x);
        }
        __syncthreads();
        float g = 0.0f, r = 0.0f, y = 0.0f;
        if (role_ == Role::inverse) {
          m_.g[slot_] = g = dot(row, m_.c);
          m_.r[slot_] = r = dot(row, m_.f);
          m_.y[slot_] = y = dot(row, m_.x);
        } else if (role_ == Role::covariance) {
          const float v = m_.noise[t];
          float h, along;
          dots(w, m_.c, m_.f, h, along);
          const float s = h + v;
          good = good && h <= kHardStepAllInFloat32 * v && s > 1e-30f;
          if (slot_ == 0) {
            m_.h[t] = h;
            m_.s[t] = s;
            scalars()[0] = approximate_reciprocal(s);
            scalars()[1] = m_.e[t] - along;
          }
        }
        __syncthreads();
        const float scale = scalars()[0], energy = scalars()[1];
        const float step = m_.e[target] * scale;  // x of the next address grows by c times this
        if (role_ == Role::inverse) {
          float cg, cf, ff, cy, fy;  // c'M c, c'M f, f'M f, c'M x, f'M x
          quadratic(cg, cf, ff, cy, fy);
          const float k = cg, q = fmaf(cf, scale, 1.0f), m = (energy - ff) * scale * scale;
          const float D = fmaf(q, q, k * m);
          good = good && D > kLeastDeterminant && D < 1e30f;
          const float inverse = approximate_reciprocal(D);
          const float rho = fmaf(step, q - 1.0f, fy * scale), sigma = fmaf(step, k, cy);
          const float alpha = fmaf(k, rho, -q * sigma) * inverse;
          const float beta = -fmaf(q, rho, m * sigma) * inverse;
          if (!last || left != 0)
            m_.W[target * kAlong + slot_] = fmaf(alpha * scale, r, fmaf(step + beta, g, y));
          moves = last;
          if (last) {
            const float scaled = r * scale;
            of_r = fmaf(k, scaled, -q * g) * inverse * scale;
            of_g = -fmaf(q, scaled, m * g) * inverse;
            diagonal = fmaf(of_r, r, fmaf(of_g, g, diagonal));
            if (left != 0) largest = fmaxf(largest, diagonal);
          }
        } else if (role_ == Role::covariance) {
          if (last) {
            each_four(m_.c, [&](int j, float x) { row[j] = fmaf(-(c * x), scale, row[j]); });
            m_.gain[t * kAcross + slot_] = c * scale;
          }
        } else if (role_ == Role::system) {
          if (last) {
            const float own_c = m_.c[slot_], of_f = own_c * scale;
            const float of_c = fmaf(energy * scale, of_f, f * scale);
            each_four(m_.c, [&](int j, float x) { row[j] = fmaf(of_c, x, row[j]); });
            each_four(m_.f, [&](int j, float x) { row[j] = fmaf(of_f, x, row[j]); });
            diagonal = fmaf(of_c, own_c, fmaf(of_f, f, diagonal));
            largest = fmaxf(largest, diagonal);
            own = fmaf(own_c, step, m_.x[slot_]);
          }
        } else if (role_ == Role::products) {
          if (last) {
            const float of_c = e * scale;
            each_four(m_.c, [&](int j, float x) { row[j] = fmaf(of_c, x, row[j]); });
          }
        }
      }
      t = next;
    }
    if (role_ == Role::covariance) store_row(row, m_.U + slot_ * kAlong);
    return good && condition_serves(largest);
  }

  __device__ float* scalars() const { return m_.largest + kSlots - 2; }

  // Products of c and f with g, s r and y: the same in all lanes.
  __device__ void quadratic(float& cg, float& cf, float& ff, float& cy, float& fy) const {
    constexpr int kShares = kSlots / 8;  // lanes that share a product, of eight numbers each
    float sum[5] = {};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int first = 4 * (j * kShares + (lane() & (kShares - 1)));
      const auto four = [&](const float* x) {
        return *reinterpret_cast<const float4*>(x + first);
      };
      const float4 c = four(m_.c), f = four(m_.f), g = four(m_.g), r = four(m_.r), y = four(m_.y);
      const auto add = [](float& to, const float4& a, const float4& b) {
        to = fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, to))));
      };
      add(sum[0], c, g);
      add(sum[1], c, r);
      add(sum[2], f, r);
      add(sum[3], c, y);
      add(sum[4], f, y);
    }
#pragma unroll
    for (int distance = 1; distance < kShares; distance *= 2)
#pragma unroll
      for (int i = 0; i < 5; ++i) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], distance);
    cg = sum[0], cf = sum[1], ff = sum[2], cy = sum[3], fy = sum[4];
  }

  // Whether float32 bears the condition of A, from the largest numbers on the diagonals of A and M
  // over all steps.
  __device__ bool condition_serves(float largest) const {
    if (slot_ >= K_) largest = 0.0f;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
    const bool counts = role_ == Role::inverse || role_ == Role::system;
    if (counts && lane() == 0) m_.largest[warp_] = largest;
    __syncthreads();
    float of_M = 0.0f, of_A = 0.0f;
#pragma unroll
    for (int i = 0; i < kHalves; ++i) {
      of_M = fmaxf(of_M, m_.largest[i]);
      of_A = fmaxf(of_A, m_.largest[2 * kHalves + i]);
    }
    return of_M * of_A <= kTrackedAllInFloat32;
  }

  // d in the place of Z. Leaves the block synchronised.
  __device__ void make_differences() const {
    multiply<1, 1>(
        Along{m_.gain, kAcross}, Along{m_.W, kAlong}, kSmallChunk, kSmallChunk / 8, kSlots,
        [&](int i, int j, float x, float y) { store_pair(m_.X + i * kSquare + j, x, y); });
    multiply<2, 2>(Along{m_.W, kAlong}, Across{m_.R, m_.ld}, kSmallChunk, tiles_, kSlots,
                   [&](int i, int j, float x, float y) {
                     float* z = m_.Z + i * m_.ld + j;
                     store_pair(z, z[0] - x, z[1] - y);
                   });
    __syncthreads();
    for (int j = block_thread(); j < C_; j += kThreads)
      solve_column(m_.Z + j, m_.ld, m_.X, kSquare, steps_, m_.one, [](int, float) {});
    __syncthreads();
  }

  // R after the chunk, the addresses, and |d|^2; whether the addresses that this thread stores are
  // finite.
  __device__ bool update() const {
    multiply<2, 2>(Across{m_.gain, kAcross}, Across{m_.Z, m_.ld}, kSlots, tiles_, kSmallChunk,
                   [&](int i, int j, float x, float y) {
                     float* r = m_.R + i * m_.ld + j;
                     store_pair(r, r[0] + x, r[1] + y);
                   });
    for (int t = warp_; t < steps_; t += kThreads / 32) {
      float sum = 0.0f;
      for (int j = lane(); j < C_; j += 32) {
        const float d = m_.Z[t * m_.ld + j];
        sum = fmaf(d, d, sum);
      }
      sum = warp_sum(sum);
      if (lane() == 0) m_.energy[t] = sum;
    }
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

  // The KL of the chunk's steps, by one warp, a step per lane, and what it adds to the evidence;
  // whether it is finite.
  __device__ bool store_numbers(double& evidence) const {
    const int t = lane();
    if (t >= steps_) return true;
    double kl = 0.0;
    if (*m_.kept >> t & 1) {
      const double h = double(m_.h[t]), v = double(m_.noise[t]), s = h + v;
      const double ratio = h / s, energy = double(m_.energy[t]) / s, columns = double(C_);
      kl = 0.5 * (energy * ratio + columns * (log1p(h / v) - ratio));
      evidence -= 0.5 * (energy + columns * (log(s) + kLog2Pi));
    }
    store_scalar(args_.step_kl, b_, first_ + t, kl);
    return kl < kInfinite && kl > -kInfinite;
  }

  // Whether what this thread stores is finite.
  __device__ bool store_state() const {
    Finite finite;
    const auto store = [&](float* to, float x) {
      finite.check(x);
      *to = x;
    };
    float* const mean = static_cast<float*>(args_.mean_out.data) + b_ * K_ * C_;
    each(K_, C_, [&](int i, int j) { store(mean + i * C_ + j, m_.R[i * m_.ld + j]); });
    float* const cov = static_cast<float*>(args_.cov_out.data) + b_ * K_ * K_;
    each(K_, K_, [&](int i, int j) { store(cov + i * K_ + j, m_.U[i * kAlong + j]); });
    return finite.all();
  }

  const AdaptiveWriteArgs& args_;
  const int64_t b_;
  const int K_, C_, tiles_, warp_;
  const Role role_;
  const int slot_;  // of the row that this thread has
  const Memory m_;
  const float ridge_;
  int64_t first_ = 0;  // of the chunk's steps
  int steps_ = 0;      // of the chunk
};

inline SmallReadPlan plan_small(const AdaptiveWriteArgs& args, int team, const Device& device) {
  const Sizes& n = args.n;
  if (is_small(n.T, n) || n.K > n.C) return {};
  const size_t shared = n.K <= 32 ? SmallAdaptiveMemory<32>::bytes(int(n.C))
                                  : SmallAdaptiveMemory<64>::bytes(int(n.C));
  SmallReadPlan plan = plan_small_read(n, team, shared, device, args.mean, args.cov);
  plan.shares = 1;
  return plan;
}

template <int kSlots>
__global__ void __launch_bounds__(SmallAdaptive<kSlots>::kThreads, 4 / (kSlots / 32))
    small_adaptive_kernel(const __grid_constant__ AdaptiveWriteArgs args, int* marks) {
  const bool done = SmallAdaptive<kSlots>(args, blockIdx.x).run();
  if (block_thread() == 0) marks[blockIdx.x] = !done;
}

}  // namespace kanerva::cuda
