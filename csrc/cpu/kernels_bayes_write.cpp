#include "bayes_write_backward.h"
#include "kernels.h"

namespace kanerva {
namespace KANERVA_ISA {

KANERVA_KERNEL(bayes_write, BayesWriteArgs)
KANERVA_KERNEL(bayes_write_backward, BayesWriteBackwardArgs)

}  // namespace KANERVA_ISA
}  // namespace kanerva
