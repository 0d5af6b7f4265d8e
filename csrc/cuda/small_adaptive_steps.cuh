// The steps of a chunk of small_adaptive.cuh, whose text has the algebra: with rows of matrices in
// registers and three barriers a step.
#pragma once

#include "small_read.cuh"

namespace kanerva::cuda {

// Shared memory of a block; kSlots is 32 or 64. Padded with zeros.
template <int kSlots>
struct SmallAdaptiveMemory {
  static constexpr int kAlong = stride_along(kSlots), kAcross = stride_across(kSlots);
  static constexpr int kSquare = stride_along(kSmallChunk);
  static constexpr int kVector = kSlots + 4;  // apart, so that none shares banks with the next
  static constexpr int kVectors = 7, kNumbers = 7;

  float* U;                      // kSlots rows, kAlong apart
  float* X;                      // x_j in kSmallChunk rows like these; then gain_t'w_j, as G
  float *W, *gain;               // rows w_t and c_t / s_t, kAcross apart; before, A, like U
  float* G;                      // z_i'z_j, kSquare apart
  float *c, *f, *x, *g, *r, *y;  // of slots; x: that of the next address, y = M x, r: s r
  float* largest;                // diagonals of A and M, by the warps; its end: 1 / s and E
  float *noise, *h, *s, *energy, *one, *e;  // of kSmallChunk steps
  unsigned* kept;                           // a bit for each step that counts
  float *Z, *R;  // kSmallChunk and kSlots rows of columns, ld apart; Z, then d
  int ld;

  // Laid out from `memory` on, which the host leaves null.
  __host__ __device__ SmallAdaptiveMemory(float* memory, int columns)
      : U(memory),
        X(U + kSlots * kAlong),
        W(X + kSmallChunk * kAlong),
        gain(W + kSmallChunk * kAlong),
        G(gain + kSmallChunk * kAcross),
        c(G + kSmallChunk * kSquare),
        f(c + kVector),
        x(f + kVector),
        g(x + kVector),
        r(g + kVector),
        y(r + kVector),
        largest(y + kVector),
        noise(largest + kVector),
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
    const int64_t rest = kSlots * kAlong + kVectors * kVector +
                         kSmallChunk * (2 * kAlong + kAcross + kSquare + kNumbers);
    return sizeof(float) * size_t(rest + (kSlots + kSmallChunk) * wide);
  }
};

// The slots' half of a chunk. Two threads have a row, four numbers each in turns: so they read
// what lies side by side, in other banks.
template <int kSlots>
class AdaptiveSteps {
  using Memory = SmallAdaptiveMemory<kSlots>;
  static constexpr int kAlong = Memory::kAlong, kAcross = Memory::kAcross;
  static constexpr int kSquare = Memory::kSquare, kVector = Memory::kVector;
  static constexpr int kOwn = kSlots / 2;     // numbers of a row that a thread has
  static constexpr int kWarps = kSlots / 16;  // that have the rows of a matrix

  // What a warp has in its registers: rows of M, of U or of A, or the x_j.
  enum class Role { inverse, covariance, system, products, none };

  // Of the vectors that this lane multiplies in quadratic(): numbers after c. Opaque, or they would
  // be found anew in every step.
  struct Places {
    int a, b;
    __device__ Places() {
      constexpr int kF = kVector, kG = 3 * kVector, kR = 4 * kVector, kY = 5 * kVector;
      const int which = lane() & 7, share = 4 * (lane() >> 3);
      a = share + (which == 2 || which >= 4 ? kF : 0);
      b = share + (which == 0 ? kG : which <= 2 ? kR : kY);
      asm volatile("" : "+r"(a), "+r"(b));
    }
  };

  // Of M, (r g) (rr rg; rg gg) (r g)', with the r and g of this row; r is what lies in shared
  // memory, M f.
  struct Change {
    bool waits = false;
    float rr = 0.0f, rg = 0.0f, gg = 0.0f, r = 0.0f, g = 0.0f;
  };

 public:
  static constexpr int kThreads = 8 * kSlots;

  __device__ AdaptiveSteps(const Memory& memory, int slots, float ridge)
      : m_(memory),
        K_(slots),
        warp_(block_thread() >> 5),
        role_(warp_ >= 3 * kWarps + kSmallChunk / 16 ? Role::none : Role(warp_ / kWarps)),
        slot_(warp_ % kWarps * 16 + lane() / 2),
        part_(lane() % 2),
        ridge_(ridge) {}

  // W, gain, h and s of the chunk's steps, and U after them; false in some thread where it is too
  // hard. Leaves what is in shared memory to be synchronised.
  __device__ bool write(int num_iters) const {
    float row[kOwn];
    float diagonal = 0.0f;
    if (role_ == Role::covariance) {
      load_row(m_.U + slot_ * kAlong, row);
#pragma unroll
      for (int j = 0; j < kOwn; ++j)
        row[j] = 0.5f * (row[j] + m_.U[(2 * (j & ~3) + 4 * part_ + (j & 3)) * kAlong + slot_]);
    } else if (role_ == Role::products) {
      load_row(m_.X + slot_ * kAlong, row);
    } else if (role_ == Role::system) {
      load_row(m_.W + slot_ * kAlong, row);
      diagonal = m_.W[slot_ * (kAlong + 1)];
    } else if (role_ == Role::inverse) {
      each_of_half(m_.W + slot_ * kAlong, [&](int j, float x) { row[j] = x; });
    }
    bool good = invert(row);
    if (role_ == Role::inverse) store_half(row, m_.U + slot_ * kAlong);
    for (int i = block_thread(); i < kSmallChunk * (kAlong + kAcross); i += kThreads)
      m_.W[i] = 0.0f;
    unsigned left = *m_.kept;
    int t = left != 0 ? first_of(left) : 0;
    if (role_ == Role::products && slot_ == t) store_row(row, m_.x);
    __syncthreads();
    float own = 0.0f;  // of x_t, of rows of A
    Change change;     // that M waits for
    const Places places;
    if (role_ == Role::inverse) {
      load_row(m_.U + slot_ * kAlong, row);
      diagonal = m_.U[slot_ * (kAlong + 1)];
    }
    float largest = diagonal;
    if (left != 0) {
      if (role_ == Role::inverse) set(m_.W + t * kAlong, dot(row, m_.x));
      own = m_.x[slot_];
    }
    while (left != 0) {
      left &= left - 1;
      const int next = left != 0 ? first_of(left) : t;
      for (int i = 1; i <= num_iters; ++i) {
        const bool last = i == num_iters;
        const int target = last ? next : t;  // whose address comes next
        const float* const w = m_.W + t * kAlong;
        __syncthreads();
        float c = 0.0f, f = 0.0f, e = 0.0f;
        if (role_ == Role::inverse) {
          if (change.waits) {
            const float of_r = fmaf(change.rr, change.r, change.rg * change.g);
            const float of_g = fmaf(change.rg, change.r, change.gg * change.g);
            each_own(m_.r, [&](int j, float x) { row[j] = fmaf(of_r, x, row[j]); });
            each_own(m_.g, [&](int j, float x) { row[j] = fmaf(of_g, x, row[j]); });
            diagonal = fmaf(of_r, change.r, fmaf(of_g, change.g, diagonal));
            largest = fmaxf(largest, diagonal);
          }
        } else if (role_ == Role::covariance) {
          set(m_.c, c = dot(row, w));
        } else if (role_ == Role::system) {
          set(m_.f, f = fmaf(ridge_, w[slot_], own - dot(row, w)));
        } else if (role_ == Role::products) {
          set(m_.e, e = m_.G[t * kSquare + slot_] - dot(row, w));
          if (slot_ == target) store_row(row, m_.x);
        }
        __syncthreads();
        float g = 0.0f, r = 0.0f, y = 0.0f;
        if (role_ == Role::inverse) {
          g = dot(row, m_.c);
          r = dot(row, m_.f);
          y = dot(row, m_.x);
          set(m_.g, g);
          set(m_.r, r);
          set(m_.y, y);
        } else if (role_ == Role::covariance) {
          const float v = m_.noise[t];
          const float h = dot(w, m_.c), along = dot(w, m_.f), s = h + v;
          good = good && h <= float(kHardStepAllInFloat32) * v && s > 1e-30f;
          if (slot_ == 0 && part_ == 0) {
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
          quadratic(places, cg, cf, ff, cy, fy);
          const float k = cg, q = fmaf(cf, scale, 1.0f), m = (energy - ff) * scale * scale;
          const float D = fmaf(q, q, k * m);
          good = good && D > float(kLeastDeterminant) && D < 1e30f;
          const float inverse = approximate_reciprocal(D);
          const float rho = fmaf(step, q - 1.0f, fy * scale), sigma = fmaf(step, k, cy);
          const float alpha = fmaf(k, rho, -q * sigma) * inverse;
          const float beta = -fmaf(q, rho, m * sigma) * inverse;
          if (!last || left != 0)
            set(m_.W + target * kAlong, fmaf(alpha * scale, r, fmaf(step + beta, g, y)));
          const float scaled = inverse * scale;
          change = {last, k * scale * scaled, -q * scaled, -m * inverse, r, g};
        } else if (role_ == Role::covariance) {
          if (last) {
            each_own(m_.c, [&](int j, float x) { row[j] = fmaf(-(c * x), scale, row[j]); });
            set(m_.gain + t * kAcross, c * scale);
          }
        } else if (role_ == Role::system) {
          if (last) {
            const float own_c = m_.c[slot_], of_f = own_c * scale;
            const float of_c = fmaf(energy * scale, of_f, f * scale);
            each_own(m_.c, [&](int j, float x) { row[j] = fmaf(of_c, x, row[j]); });
            each_own(m_.f, [&](int j, float x) { row[j] = fmaf(of_f, x, row[j]); });
            diagonal = fmaf(of_c, own_c, fmaf(of_f, f, diagonal));
            largest = fmaxf(largest, diagonal);
            own = fmaf(own_c, step, m_.x[slot_]);
          }
        } else if (role_ == Role::products) {
          if (last) {
            const float of_c = e * scale;
            each_own(m_.c, [&](int j, float x) { row[j] = fmaf(of_c, x, row[j]); });
          }
        }
      }
      t = next;
    }
    if (role_ == Role::covariance) store_row(row, m_.U + slot_ * kAlong);
    share_largest(largest);
    return good;
  }

  // Whether float32 bears the condition of A, from the largest numbers on the diagonals of A and M
  // over all steps; by all threads, after a barrier.
  __device__ bool condition_serves() const {
    float of_M = 0.0f, of_A = 0.0f;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      of_M = fmaxf(of_M, m_.largest[i]);
      of_A = fmaxf(of_A, m_.largest[2 * kWarps + i]);
    }
    return of_M * of_A <= float(kTrackedAllInFloat32);
  }

 private:
  // The first step of a set that is not empty.
  __device__ static int first_of(unsigned steps) { return __popc((steps & (0u - steps)) - 1u); }

  // f(the thread's number of a vector of slots in shared memory, its index), for all that it has.
  template <class F>
  __device__ void each_own(const float* vector, F f) const {
#pragma unroll
    for (int j = 0; j < kOwn; j += 4) {
      const auto four = *reinterpret_cast<const float4*>(vector + 2 * j + 4 * part_);
      f(j, four.x);
      f(j + 1, four.y);
      f(j + 2, four.z);
      f(j + 3, four.w);
    }
  }

  __device__ void load_row(const float* from, float (&row)[kOwn]) const {
    each_own(from, [&](int j, float x) { row[j] = x; });
  }

  __device__ void store_row(const float (&row)[kOwn], float* to) const {
#pragma unroll
    for (int j = 0; j < kOwn; j += 4)
      *reinterpret_cast<float4*>(to + 2 * j + 4 * part_) = {row[j], row[j + 1], row[j + 2],
                                                            row[j + 3]};
  }

  // The sum over the threads of a row, in each of them.
  __device__ static float of_row(float x) { return x + __shfl_xor_sync(0xffffffffu, x, 1); }

  // The product of a row and a vector.
  __device__ float dot(const float (&row)[kOwn], const float* vector) const {
    float sum[4] = {};
    each_own(vector, [&](int j, float x) { sum[j % 4] = fmaf(row[j], x, sum[j % 4]); });
    return of_row((sum[0] + sum[1]) + (sum[2] + sum[3]));
  }

  // The same of two vectors.
  __device__ float dot(const float* a, const float* b) const {
    float row[kOwn];
    load_row(a, row);
    return dot(row, b);
  }

  // By the thread of a row that writes its results.
  __device__ void set(float* to, float x) const {
    if (part_ == 0) to[slot_] = x;
  }

  // f(number, its index) for the thread's half of a vector in shared memory.
  template <class F>
  __device__ void each_of_half(const float* vector, F f) const {
#pragma unroll
    for (int j = 0; j < kOwn; j += 4) {
      const auto four = *reinterpret_cast<const float4*>(vector + kOwn * part_ + j);
      f(j, four.x);
      f(j + 1, four.y);
      f(j + 2, four.z);
      f(j + 3, four.w);
    }
  }

  __device__ void store_half(const float (&row)[kOwn], float* to) const {
#pragma unroll
    for (int j = 0; j < kOwn; j += 4)
      *reinterpret_cast<float4*>(to + kOwn * part_ + j) = {row[j], row[j + 1], row[j + 2],
                                                           row[j + 3]};
  }

  // Rows of A become those of M, by Gauss and Jordan with two pivots at a time and none chosen; the
  // threads of a row have halves of it here. It rotates by two for each pair, so that its numbers
  // of the pair's columns are the first. All threads come along.
  __device__ bool invert(float (&row)[kOwn]) const {
    constexpr unsigned all = 0xffffffffu;
    const bool mine = role_ == Role::inverse;
    bool good = true;
    // Pairs take turns in two places of two vectors.
    const auto place = [&](int t) { return (t & 2) == 0 ? m_.c : m_.g; };
    // What is left of a pivot's row makes it that of the inverse by what all rows do.
    const auto publish = [&](int t) {
      if (!mine || (slot_ & ~1) != t) return;
      store_half(row, place(t) + (slot_ & 1) * kVector);
#pragma unroll
      for (int j = 2; j < kOwn; ++j) row[j] = 0.0f;
      row[0] = part_ == 0 && slot_ == t ? -1.0f : 0.0f;
      row[1] = part_ == 0 && slot_ != t ? -1.0f : 0.0f;
    };
    publish(0);
#pragma unroll 1
    for (int t = 0; t < kSlots; t += 2) {
      __syncthreads();
      if (!mine) continue;
      const float* const first = place(t);
      const float* const second = first + kVector;
      const float a = first[0], b = first[1], c = second[0], d = second[1];
      const float other0 = __shfl_xor_sync(all, row[0], 1);
      const float other1 = __shfl_xor_sync(all, row[1], 1);
      const float u = part_ == 0 ? row[0] : other0, v = part_ == 0 ? row[1] : other1;
      const float determinant = fmaf(a, d, -b * c);
      const float inverse = approximate_reciprocal(determinant);
      good = good && a > 0.0f && determinant > 1e-30f && determinant < 1e30f;
      const float x = fmaf(u, d, -v * c) * inverse, y = fmaf(v, a, -u * b) * inverse;
      each_of_half(first, [&](int j, float p) {
        if (j >= 2) row[j - 2] = fmaf(-x, p, row[j]);
      });
      each_of_half(second, [&](int j, float p) {
        if (j >= 2) row[j - 2] = fmaf(-y, p, row[j - 2]);
      });
      const float next0 = fmaf(-x, first[kOwn], fmaf(-y, second[kOwn], other0));
      const float next1 = fmaf(-x, first[kOwn + 1], fmaf(-y, second[kOwn + 1], other1));
      row[kOwn - 2] = part_ == 1 ? -x : next0;
      row[kOwn - 1] = part_ == 1 ? -y : next1;
      publish(t + 2);
    }
    return good;
  }

  __device__ float* scalars() const { return m_.largest + kSlots - 2; }

  // Products of c and f with g, s r and y, the same in all lanes: eight lanes see to one each, of
  // a quarter of the slots.
  __device__ void quadratic(const Places& places, float& cg, float& cf, float& ff, float& cy,
                            float& fy) const {
    constexpr unsigned all = 0xffffffffu;
    float even = 0.0f, odd = 0.0f;
    const float* const a = m_.c + places.a;
    const float* const b = m_.c + places.b;
#pragma unroll
    for (int j = 0; j < kSlots; j += 16) {
      const auto x = *reinterpret_cast<const float4*>(a + j);
      const auto y = *reinterpret_cast<const float4*>(b + j);
      even = fmaf(x.x, y.x, fmaf(x.z, y.z, even));
      odd = fmaf(x.y, y.y, fmaf(x.w, y.w, odd));
    }
    float sum = even + odd;
    sum += __shfl_xor_sync(all, sum, 8);
    sum += __shfl_xor_sync(all, sum, 16);
    cg = __shfl_sync(all, sum, 0);
    cf = __shfl_sync(all, sum, 1);
    ff = __shfl_sync(all, sum, 2);
    cy = __shfl_sync(all, sum, 3);
    fy = __shfl_sync(all, sum, 4);
  }

  __device__ void share_largest(float largest) const {
    if (role_ != Role::inverse && role_ != Role::system) return;
    if (slot_ >= K_) largest = 0.0f;
#pragma unroll
    for (int distance = 2; distance < 32; distance *= 2)
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
    if (lane() == 0) m_.largest[warp_] = largest;
  }

  const Memory& m_;
  const int K_, warp_;
  const Role role_;
  const int slot_, part_;  // of the thread's row
  const float ridge_;
};

}  // namespace kanerva::cuda
