// Entry points of one instruction set, each defined in a file of its own so that they compile in
// parallel.
#pragma once

#include "../common/arguments.h"

namespace kanerva {
namespace KANERVA_ISA {

#define KANERVA_DECLARE(op, Args) void run_##op(const Args&, const Executor&);
KANERVA_OPERATORS(KANERVA_DECLARE)
#undef KANERVA_DECLARE

// Defines the entry point of an operator, which is a template elsewhere.
#define KANERVA_KERNEL(op, Args) \
  void run_##op(const Args& args, const Executor& executor) { op(args, executor); }

}  // namespace KANERVA_ISA
}  // namespace kanerva
