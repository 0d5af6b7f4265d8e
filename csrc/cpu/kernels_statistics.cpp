#include "kernels.h"
#include "statistics.h"

namespace kanerva {
namespace KANERVA_ISA {

KANERVA_KERNEL(statistics, StatisticsArgs)
KANERVA_KERNEL(statistics_backward, StatisticsBackwardArgs)

}  // namespace KANERVA_ISA
}  // namespace kanerva
