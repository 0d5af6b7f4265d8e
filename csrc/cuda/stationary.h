// The writes and scans of memories that move (`retention`), in kernels of their own: those of
// memories that keep still have fewer registers without them.
#pragma once

#include "launchers.h"

namespace kanerva::cuda {

size_t stationary_workspace(const BayesWriteArgs&, const Device&);
size_t stationary_workspace(const CausalScanArgs&, const Device&);
size_t stationary_workspace(const BayesWriteBackwardArgs&, const Device&);
size_t stationary_workspace(const CausalScanBackwardArgs&, const Device&);
void stationary(const BayesWriteArgs&, const Launch&);
void stationary(const CausalScanArgs&, const Launch&);
void stationary(const BayesWriteBackwardArgs&, const Launch&);
void stationary(const CausalScanBackwardArgs&, const Launch&);

}  // namespace kanerva::cuda
