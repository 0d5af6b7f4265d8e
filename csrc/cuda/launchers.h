// The CUDA backend as functions: one launcher per operator, with the arguments of the numerical
// core. Knows no torch. All pointers are device pointers; nothing is synchronised.
//
// <op>_workspace gives the bytes of scratch memory that <op> needs for these arguments; the caller
// provides them (16-byte aligned) until the stream has passed the launch.
#pragma once

#include "device.h"

namespace kanerva::cuda {

struct Launch {
  Stream stream = {};
  Device device;
  void* workspace = nullptr;
};

#define KANERVA_LAUNCHER(op, Args)                   \
  size_t op##_workspace(const Args&, const Device&); \
  void op(const Args&, const Launch&);

KANERVA_OPERATORS(KANERVA_LAUNCHER)
#undef KANERVA_LAUNCHER

}  // namespace kanerva::cuda
