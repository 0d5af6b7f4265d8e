// Functions as the interpreter runs them: instructions decoded once, registers as places in a
// frame, branches as positions.
#pragma once

#include <array>
#include <map>

#include "module.h"

namespace ptx {

constexpr int kLanes = 32;
using Mask = uint32_t;
constexpr Mask kAllLanes = ~Mask(0);

struct Warp;
struct Instruction;
using Handler = void (*)(Warp&, const Instruction&, Mask);

// Generic addresses: those of global memory are the host's own, the other spaces have windows.
constexpr uint64_t kSharedWindow = uint64_t(0x71) << 56;
constexpr uint64_t kLocalWindow = uint64_t(0x72) << 56;
constexpr uint64_t kParamWindow = uint64_t(0x73) << 56;
constexpr uint64_t kWindowMask = uint64_t(0xff) << 56;

// A place in the shared memory of a block of the cluster: the rank and one, then the offset. Where
// there is no rank, as of an address in .shared::cta, it is the own block's.
constexpr int kRankShift = 24;

enum class Space : uint8_t { generic, global, shared, cluster, local, param, kernel_param };

// What the loop over instructions does itself; all else is its handler's.
enum class Control : uint8_t {
  none,
  branch,
  branch_index,
  call,
  leave,  // ret
  exit,
  barrier,     // of the block
  arrive,      // at the barrier of the cluster
  wait,        // at it
  collective,  // of the lanes that it names or of the whole warp
  sleep,
  trap
};

enum class Barrier : uint8_t { sync, arrive, any, all, count };

// What a cp.async is: a copy, the end of a group of copies, a wait for groups.
enum class Async : uint8_t { none, copy, commit, wait };

// How strong a memory operation is, and for whom.
enum class Order : uint8_t { weak, relaxed, acquire, release, acquire_release };
enum class Scope : uint8_t { block, device };  // .cta; .cluster, .gpu and .sys

// The kinds that are counted apart.
enum class Kind : uint8_t {
  integer32,
  integer64,
  float32,
  float64,
  special,   // approximations of one instruction
  division,  // and roots, rounded: several instructions
  compare,
  logic,
  convert,
  move,
  branch,
  call,
  load_global,
  store_global,
  load_shared,
  store_shared,
  load_local,
  store_local,
  parameter,
  generic_load,
  generic_store,
  atomic,
  fence,
  barrier,
  cluster_barrier,
  shuffle,
  matrix,
  asynchronous,
  other,
  count
};
const char* name_of(Kind kind);
Kind memory_kind(Space space, bool loads);  // of a load or a store there

struct Instruction {
  Handler handler = nullptr;
  Control control = Control::none;
  Kind kind = Kind::other;
  Space space = Space::generic;
  Order order = Order::weak;
  Scope scope = Scope::device;
  Barrier barrier = Barrier::sync;
  Async async = Async::none;
  bool leads_block = false;  // another instruction branches here, or control comes back to it
  bool guarded = false, guard_negated = false;
  bool aligned = true;  // all of a warp must be at it
  bool is_write = false, is_read = false, is_copied_only = false, is_volatile = false;
  bool passes_bytes =
      false;           // its target holds bytes of its source, and nothing that follows from them
  uint8_t vector = 1;  // elements of a load or store
  uint8_t bytes = 0;   // of one element
  uint8_t address_width = 8;                   // bytes of the register that holds an address
  uint8_t target_width = 0, source_width = 0;  // bytes of registers wider than the type
  uint8_t option = 0;                          // of the handler
  uint8_t flip = 0;                            // bit i: source i is a negated predicate
  enum Relative : uint8_t { absolute, to_dynamic_shared, to_frame };
  Relative relative = absolute;  // what an address is an offset in
  bool has_base = false;         // an address has a register
  uint32_t guard = 0;            // places in a frame's registers
  std::array<uint32_t, 8> target{};
  std::array<uint32_t, 14> source{};
  uint8_t targets = 0, sources = 0;
  int64_t offset = 0;  // of an address, or an immediate
  int32_t branch = -1;
  int32_t extra = -1;  // index of Code::calls or Code::branch_tables
  int32_t line = 0, location = -1;
  uint64_t executed = 0;  // by warps
};

struct Code;

// One call of a function by lanes of a warp.
struct Frame {
  Code* code = nullptr;
  Frame* parent = nullptr;
  int return_to = 0;  // in the parent's code
  int depth = 0;
  uint64_t serial = 0;
  Mask live = 0;
  int64_t local_base = 0;  // of a lane's local memory
  std::vector<uint8_t> storage;
  uint8_t* registers = nullptr;     // in the storage, aligned
  std::vector<uint8_t> parameters;  // lane by lane
};

struct Call {
  std::string name;
  const Code* callee = nullptr;  // decoded at the first call
  struct Copy {
    int64_t from, to;
    int bytes;
  };
  std::vector<Copy> arguments, results;  // in the frames' parameter space
  std::vector<std::string> argument_names, result_names;
  std::vector<int64_t> argument_places, result_places;
};

struct Code {
  const Function* function = nullptr;
  Module* module = nullptr;
  std::vector<Instruction> instructions;
  std::vector<int> order;  // of the basic block of each instruction: smaller runs first
  std::vector<Call> calls;
  std::vector<std::vector<int>> branch_tables;
  std::vector<uint8_t> registers;  // a frame's registers as they start: constants are in place
  struct Slot {
    uint32_t place;
    uint8_t width;  // bytes; 0: a predicate
  };
  std::vector<Slot> slots;
  int64_t parameter_bytes = 0;  // of one lane: results, parameters and those of its calls
  int64_t kernel_parameter_bytes = 0;
  int64_t local_bytes = 0;
  std::vector<int64_t> parameter_places, result_places;
  std::vector<std::unique_ptr<Frame>> frames;  // made so far
  std::vector<Frame*> free_frames;
  // The dynamic shared memory of a launch lies behind the module's static one.
};

// Decodes it unless that was done. Throws Unsupported.
Code& code_of(Module& module, const std::string& name);

// The order of a function's basic blocks in which lanes that took different ways run: topological,
// the whole of a loop before what follows it, so that lanes meet again as early as they can.
std::vector<int> block_order(const std::vector<std::vector<int>>& successors);

}  // namespace ptx
