// In the place of the CUDA runtime: the few calls that the library's launchers make. Their kernels
// are run by the interpreter, on PTX files of the folder that KANERVA_PTX names.
//
// KANERVA_PTX_PROCESSORS and KANERVA_PTX_SHARED_BYTES stand for other devices than an H100,
// KANERVA_PTX_CLUSTERS=0 for one that has no room for a cluster (and none has one below sm_90),
// KANERVA_PTX_SEED varies the order of warps and blocks, KANERVA_PTX_EARLY_COPIES=1 has cp.async
// land when it is issued, KANERVA_PTX_SKIP_BARRIER=n leaves out the n-th barrier of every block
// (KANERVA_PTX_SKIP_IN: of kernels with this in their name only), KANERVA_PTX_COUNTS names a file
// that gets a line of JSON for each launch, KANERVA_PTX_STATISTICS=1 has totals printed at the end.
#include <cuda_runtime_api.h>
#include <dirent.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <sstream>

#include "counter.h"
#include "warp.h"

#ifndef KANERVA_PTX_FOLDER
#define KANERVA_PTX_FOLDER ""
#endif

namespace {

int64_t environment(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text && *text ? std::atoll(text) : otherwise;
}

// Of the device: bytes of shared memory that a block can ask for.
int most_shared() { return int(environment("KANERVA_PTX_SHARED_BYTES", 227 * 1024)); }
int processors() { return int(environment("KANERVA_PTX_PROCESSORS", 132)); }

constexpr unsigned kMostInCluster = 8;  // that every device which has clusters takes

std::string folder_of_ptx() {
  const char* named = std::getenv("KANERVA_PTX");
  return named && *named ? named : KANERVA_PTX_FOLDER;
}

// The architecture of the PTX that is run, such as 90.
int architecture() {
  DIR* entries = opendir(folder_of_ptx().c_str());
  if (!entries) return 0;
  int found = 0;
  while (const dirent* entry = readdir(entries)) {
    const std::string file = entry->d_name;
    if (file.size() < 4 || file.substr(file.size() - 4) != ".ptx") continue;
    std::ifstream in(folder_of_ptx() + "/" + file);
    for (std::string line; std::getline(in, line);) {
      if (line.compare(0, 11, ".target sm_") != 0) continue;
      found = std::atoi(line.c_str() + 11);
      break;
    }
    break;
  }
  closedir(entries);
  return found;
}

bool has_clusters() { return architecture() >= 90; }
// Clusters of so many blocks at the same time.
int most_clusters(unsigned size) {
  return has_clusters() ? int(environment("KANERVA_PTX_CLUSTERS", processors() / int(size))) : 0;
}

class Runtime {
 public:
  static Runtime& get() {
    static Runtime* runtime = new Runtime;  // never destroyed: kernels unregister at exit
    return *runtime;
  }

  void add(const void* kernel, const char* name) { names_[kernel] = name; }

  void launch(const cudaLaunchConfig_t& how, const void* kernel, void** arguments) {
    const std::lock_guard<std::mutex> guard(lock_);
    const std::string& name = names_.at(kernel);
    ptx::Module& module = module_of(name);
    const ptx::Code& code = ptx::code_of(module, name);
    std::vector<uint8_t> parameters(size_t(code.kernel_parameter_bytes));
    for (size_t k = 0; k < code.parameter_places.size(); ++k)
      std::memcpy(&parameters[size_t(code.parameter_places[k])], arguments[k],
                  size_t(code.function->parameters[k].bytes));
    ptx::LaunchShape shape;
    shape.grid = {how.gridDim.x, how.gridDim.y, how.gridDim.z};
    shape.block = {how.blockDim.x, how.blockDim.y, how.blockDim.z};
    shape.dynamic_shared = int64_t(how.dynamicSmemBytes);
    for (unsigned k = 0; k < how.numAttrs; ++k) {
      const cudaLaunchAttributeValue& value = how.attrs[k].val;
      if (how.attrs[k].id == cudaLaunchAttributeCooperative)
        shape.cooperative = value.cooperative != 0;
      if (how.attrs[k].id == cudaLaunchAttributeClusterDimension)
        shape.cluster = {value.clusterDim.x, value.clusterDim.y, value.clusterDim.z};
    }
    check(shape, kernel);
    ptx::Findings findings;
    const char* counts = std::getenv("KANERVA_PTX_COUNTS");
    ptx::Counter counter;
    ptx::Options how_to_run = options();
    const char* mutated = std::getenv("KANERVA_PTX_SKIP_IN");
    const bool is_mutated = !mutated || name.find(mutated) != std::string::npos;
    if (!is_mutated) how_to_run.skip_barrier = -1;
    const ptx::Totals totals = ptx::launch_kernel(module, name, shape, parameters, how_to_run,
                                                  findings, nullptr, counts ? &counter : nullptr);
    ++launches_;
    instructions_ += totals.instructions;
    if (is_mutated) most_barriers_ = std::max(most_barriers_, totals.most_barriers);
    if (counts) std::ofstream(counts, std::ios::app) << counter.json(name, shape) << "\n";
    if (!findings.empty()) throw ptx::Fault(findings.text());
  }

  cudaError_t fail(const std::string& what) {
    error_ = what;
    return cudaErrorLaunchFailure;
  }
  const char* error() const { return error_.c_str(); }

  void allow_shared(const void* kernel, int bytes) { most_shared_[kernel] = bytes; }

  void print_statistics() const {
    if (!environment("KANERVA_PTX_STATISTICS", 0)) return;
    std::printf("PTX: %llu launches, %llu instructions of warps\n",
                static_cast<unsigned long long>(launches_),
                static_cast<unsigned long long>(instructions_));
    std::printf("most barriers of a block: %d\n", most_barriers_);
  }

 private:
  Runtime() {
    std::atexit([] { get().print_statistics(); });
  }

  static ptx::Options options() {
    ptx::Options o;
    o.seed = uint64_t(environment("KANERVA_PTX_SEED", 0));
    o.skip_barrier = int(environment("KANERVA_PTX_SKIP_BARRIER", -1));
    o.checks_races = environment("KANERVA_PTX_RACES", 1) != 0;
    o.weak_memory = environment("KANERVA_PTX_WEAK_MEMORY", 1) != 0;
    o.early_copies = environment("KANERVA_PTX_EARLY_COPIES", 0) != 0;
    o.quantum = int(environment("KANERVA_PTX_QUANTUM", o.quantum));
    return o;
  }

  void check(const ptx::LaunchShape& shape, const void* kernel) const {
    const auto allowed = most_shared_.find(kernel);
    const int64_t most = allowed == most_shared_.end() ? 48 * 1024 : allowed->second;
    if (shape.dynamic_shared > most)
      throw ptx::Fault("a launch with " + std::to_string(shape.dynamic_shared) +
                       " bytes of dynamic shared memory, where " + std::to_string(most) +
                       " are allowed");
    if (shape.grid[0] == 0 || shape.grid[1] == 0 || shape.grid[2] == 0 || shape.grid[1] > 65535 ||
        shape.grid[2] > 65535)
      throw ptx::Fault("a grid that no device takes");
    if (shape.cooperative &&
        uint64_t(shape.grid[0]) * shape.grid[1] * shape.grid[2] > uint64_t(processors()))
      throw ptx::Fault("a cooperative launch of more blocks than processors");
    if (shape.cluster_size() > kMostInCluster) throw ptx::Fault("a cluster of more than 8 blocks");
    if (shape.cluster_size() > 1 && most_clusters(shape.cluster_size()) == 0)
      throw ptx::Fault("a cluster, for which the device has no room");
  }
  ptx::Module& module_of(const std::string& kernel) {
    const auto known = kernels_.find(kernel);
    if (known != kernels_.end()) return *known->second;
    const std::string folder = folder_of_ptx();
    DIR* entries = opendir(folder.c_str());
    if (!entries) throw ptx::Fault("KANERVA_PTX: no folder " + folder);
    const std::string wanted = ".entry " + kernel;
    while (const dirent* entry = readdir(entries)) {
      const std::string file = entry->d_name;
      if (file.size() < 4 || file.substr(file.size() - 4) != ".ptx" || modules_.count(file))
        continue;
      std::ifstream in(folder + "/" + file);
      std::stringstream text;
      text << in.rdbuf();
      const std::string all = text.str();
      const size_t at = all.find(wanted);
      if (at == std::string::npos) continue;
      auto& module = modules_[file] = ptx::parse_module(all, file);
      for (const auto& [name, f] : module->functions)
        if (f->is_entry) kernels_[name] = module.get();
      break;
    }
    closedir(entries);
    const auto found = kernels_.find(kernel);
    if (found == kernels_.end())
      throw ptx::Fault("the folder " + folder + " has no PTX of the kernel " + kernel);
    return *found->second;
  }

  std::mutex lock_;
  std::map<const void*, std::string> names_;
  std::map<const void*, int> most_shared_;
  std::map<std::string, std::unique_ptr<ptx::Module>> modules_;
  std::map<std::string, ptx::Module*> kernels_;
  std::string error_;
  uint64_t launches_ = 0, instructions_ = 0;
  int most_barriers_ = 0;
};

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  Runtime::get().add(host, name);
}
// Of <<<...>>>, which the library does not use.
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, void*) { std::abort(); }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { std::abort(); }
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { std::abort(); }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
  std::abort();
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value > most_shared()) {
    Runtime::get().fail("more dynamic shared memory than a block can have: " +
                        std::to_string(value));
    return cudaErrorInvalidValue;
  }
  Runtime::get().allow_shared(kernel, value);
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->ptxVersion = attributes->binaryVersion = architecture();
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t) { return Runtime::get().error(); }

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = most_shared();
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = processors();
      return cudaSuccess;
    case cudaDevAttrClusterLaunch:
      *value = has_clusters();
      return cudaSuccess;
    default:
      Runtime::get().fail("an attribute that is not known: " + std::to_string(attribute));
      return cudaErrorInvalidValue;
  }
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*,
                                           const cudaLaunchConfig_t* how) {
  unsigned size = 1;
  for (unsigned k = 0; k < how->numAttrs; ++k)
    if (how->attrs[k].id == cudaLaunchAttributeClusterDimension) {
      const auto& of = how->attrs[k].val.clusterDim;
      size = of.x * of.y * of.z;
    }
  *clusters = most_clusters(size);
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* how, const void* kernel,
                                void** arguments) {
  try {
    Runtime::get().launch(*how, kernel, arguments);
  } catch (const std::exception& e) {
    return Runtime::get().fail(e.what());
  }
  return cudaSuccess;
}

}  // extern "C"
