#include "causal_scan_backward.h"
#include "kernels.h"

namespace kanerva {
namespace KANERVA_ISA {

void run_causal_scan(const CausalScanArgs& args, const Executor& executor) {
  causal_scan(args, executor);
}

void run_causal_scan_backward(const CausalScanBackwardArgs& args, const Executor& executor) {
  causal_scan_backward(args, executor);
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
