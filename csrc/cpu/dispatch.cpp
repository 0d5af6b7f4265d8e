// Picks the kernels of the best instruction set that both the build and the processor have.
// KANERVA_SIMD=baseline|avx2|avx512 lowers it, for tests and for comparing.
#include <cstdlib>
#include <cstring>

#include "../common/parts.h"

namespace kanerva {

Executor::~Executor() = default;

const Executor& serial_executor() {
  class Serial final : public Executor {
    int64_t threads() const override { return 1; }
    void run(int64_t tasks, void (*body)(void*, int64_t), void* data) const override {
      for (int64_t i = 0; i < tasks; ++i) body(data, i);
    }
  };
  static const Serial serial;
  return serial;
}

namespace baseline {
const Kernels& table();
const Parts& parts();
}  // namespace baseline
#ifdef KANERVA_HAVE_AVX2
namespace avx2 {
const Kernels& table();
const Parts& parts();
}  // namespace avx2
#endif
#ifdef KANERVA_HAVE_AVX512
namespace avx512 {
const Kernels& table();
const Parts& parts();
}  // namespace avx512
#endif

namespace {

struct Choice {
  const char* name;
  const Kernels* kernels;
  const Parts* parts;
};

Choice choose() {
  const char* limit = std::getenv("KANERVA_SIMD");
  const auto allowed = [&](const char* name) {
    if (limit == nullptr || *limit == '\0' || std::strcmp(limit, "avx512") == 0) return true;
    if (std::strcmp(limit, "avx2") == 0) return std::strcmp(name, "avx512") != 0;
    return std::strcmp(limit, "baseline") != 0;  // an unknown name changes nothing
  };
#ifdef KANERVA_HAVE_AVX512
  if (allowed("avx512") && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    return {"avx512", &avx512::table(), &avx512::parts()};
  }
#endif
#ifdef KANERVA_HAVE_AVX2
  if (allowed("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return {"avx2", &avx2::table(), &avx2::parts()};
  }
#endif
  (void)allowed;
  return {"baseline", &baseline::table(), &baseline::parts()};
}

const Choice& choice() {
  static const Choice c = choose();
  return c;
}

}  // namespace

const Kernels& kernels() { return *choice().kernels; }
const Parts& parts() { return *choice().parts; }
const char* simd_level() { return choice().name; }

}  // namespace kanerva
