// How the chunks of an episode are reversed, with the states kept in between. Adjoint of
// write_adjoint.cuh has the same inside: it would take more registers with this.
#pragma once

#include "write_adjoint.cuh"

namespace kanerva::cuda {

// The states that are kept, in global memory. Adjoint has this and the next inside: apart, they
// took it registers.
template <class F>
class KeptStates {
 public:
  __device__ KeptStates(char* memory, int K, int C)
      : data_(reinterpret_cast<F*>(memory)), K_(K), C_(C) {}

  // Leave the team synchronised.
  __device__ void keep(int64_t i, Mat<F> U, Mat<F> R) const {
    copy(K_, U, cov(i));
    copy(C_, R, mean(i));
    sync();
  }
  __device__ void restore(int64_t i, Mat<F> U, Mat<F> R) const {
    copy(K_, cov(i), U);
    copy(C_, mean(i), R);
    sync();
  }

 private:
  __device__ Mat<F> cov(int64_t i) const { return {data_ + i * K_ * (K_ + C_), K_}; }
  __device__ Mat<F> mean(int64_t i) const {
    return {data_ + i * K_ * (K_ + C_) + int64_t(K_) * K_, C_};
  }
  __device__ void copy(int columns, Mat<F> from, Mat<F> to) const {
    each(K_, columns, [&](int r, int j) { to(r, j) = from(r, j); });
  }

  F* data_;
  int K_, C_;
};

// Reverses the chunks from the last to the first. A Subject has, each with the team synchronised
// after it,
//   load_state()          the state of the item
//   advance(i)            the write of chunk i
//   reverse(i)            its adjoint, at the state before it
//   keep(i), restore(i)   the state, at place i
template <class Subject>
__device__ inline Outcome reverse_chunks(Subject& subject, const Segments& s) {
  Outcome outcome = subject.load_state();
  for (int64_t i = 0; i + 1 < s.count && outcome == Outcome::done; ++i) {
    for (int64_t j = 0; j < s.length && outcome == Outcome::done; ++j)
      outcome = subject.advance(i * s.length + j);
    subject.keep(i);
  }
  for (int64_t i = s.count - 1; i >= 0 && outcome == Outcome::done; --i) {
    if (s.count > 1 && i > 0) subject.restore(i - 1);
    if (s.count > 1 && i == 0) outcome = subject.load_state();
    const int64_t first = i * s.length;
    const int64_t last = (first + s.length < s.chunks ? first + s.length : s.chunks) - 1;
    for (int64_t j = first; j < last && outcome == Outcome::done; ++j) {
      subject.keep(s.count + j - first);
      outcome = subject.advance(j);
    }
    for (int64_t j = last; j >= first && outcome == Outcome::done; --j) {
      if (j < last) subject.restore(s.count + j - first);
      outcome = subject.reverse(j);
    }
  }
  return outcome;
}

}  // namespace kanerva::cuda
