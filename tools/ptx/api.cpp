// The interpreter for Python (interpreter.py), which loads this as a library.
#include <algorithm>

#include "counter.h"
#include "warp.h"

namespace {

struct Session {
  std::unique_ptr<ptx::Module> module;
  ptx::GlobalMemory memory;
  std::string result, counted;
};

std::string last_error;

// Fields apart by 0x1f, findings by 0x1e.
std::string text_of(const ptx::Findings& findings) {
  std::string text;
  for (const ptx::Finding& f : findings.all())
    text += f.kind + "\x1f" + f.what + "\x1f" + f.where + "\x1f" + std::to_string(f.times) + "\x1e";
  return text;
}

}  // namespace

extern "C" {

const char* ptx_error() { return last_error.c_str(); }

// Null where the text is not understood: see ptx_error.
void* ptx_open(const char* text, const char* name) {
  try {
    auto session = std::make_unique<Session>();
    session->module = ptx::parse_module(text, name);
    return session.release();
  } catch (const std::exception& e) {
    last_error = e.what();
    return nullptr;
  }
}

void ptx_close(void* session) { delete static_cast<Session*>(session); }

void ptx_buffer(void* session, uint64_t begin, uint64_t bytes, int written) {
  static_cast<Session*>(session)->memory.add(begin, bytes, written != 0);
}
void ptx_forget(void* session, uint64_t begin) {
  static_cast<Session*>(session)->memory.remove(begin);
}

struct PtxHow {
  uint32_t grid[3], block[3];
  int64_t dynamic_shared;
  int32_t cooperative, checks_races, weak_memory, early_copies, skip_barrier;
  uint64_t seed;
  int32_t quantum, counts;
  uint32_t cluster[3];
};

// 0: done; 1: it stopped (ptx_error); 2: something is unknown (ptx_error). What was found is
// ptx_result.
int ptx_launch(void* opened, const char* kernel, const PtxHow* how, const uint8_t* parameters,
               int64_t bytes) {
  Session& session = *static_cast<Session*>(opened);
  ptx::Findings findings;
  int status = 0;
  session.result.clear();
  try {
    ptx::LaunchShape shape;
    std::copy_n(how->grid, 3, shape.grid.begin());
    std::copy_n(how->block, 3, shape.block.begin());
    std::copy_n(how->cluster, 3, shape.cluster.begin());
    shape.dynamic_shared = how->dynamic_shared;
    shape.cooperative = how->cooperative != 0;
    ptx::Options options;
    options.checks_races = how->checks_races != 0;
    options.weak_memory = how->weak_memory != 0;
    options.early_copies = how->early_copies != 0;
    options.skip_barrier = how->skip_barrier;
    options.seed = how->seed;
    if (how->quantum > 0) options.quantum = how->quantum;
    for (auto& [name, storage] : session.module->storage)
      session.memory.add(reinterpret_cast<uint64_t>(storage.data()), storage.size(), true);
    const std::vector<uint8_t> given(parameters, parameters + bytes);
    ptx::Counter counter;
    ptx::launch_kernel(*session.module, kernel, shape, given, options, findings, &session.memory,
                       how->counts ? &counter : nullptr);
    session.counted = how->counts ? counter.json(kernel, shape) : std::string();
  } catch (const ptx::Unsupported& e) {
    last_error = e.what();
    status = 2;
  } catch (const std::exception& e) {
    last_error = e.what();
    status = 1;
  }
  session.result = text_of(findings);
  return status;
}

const char* ptx_counted(void* session) { return static_cast<Session*>(session)->counted.c_str(); }
const char* ptx_result(void* session) { return static_cast<Session*>(session)->result.c_str(); }

}  // extern "C"
