// The writes into a memory that moves: defined in kernels_stationary.cpp, which compiles beside the
// others.
#pragma once

#include "../common/arguments.h"

namespace kanerva {
namespace KANERVA_ISA {

// With absent queries nothing is read; `only_sqrt`: no Cholesky factors.
void stationary_scan(const CausalScanArgs& args, bool only_sqrt, const Executor& executor);
void stationary_scan_backward(const CausalScanBackwardArgs& args, bool only_sqrt,
                              const Executor& executor);

}  // namespace KANERVA_ISA
}  // namespace kanerva
