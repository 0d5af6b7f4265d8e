// Global memory of a launch whose blocks run at the same time, as weak as PTX allows it to be.
//
// What a block writes stays in its store buffer until a fence for the device by one of its threads;
// strong writes leave the buffer at once or, by chance, only when the block next waits, so that
// they overtake each other. What another block wrote since this one's last fence it may, by
// chance, still find as it was, the first time that it looks. Updates (atom, red) act on the memory
// itself. So a missing fence gives wrong results, also where all accesses are strong and nothing
// races.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace ptx {

constexpr uint64_t kPageBytes = 4096;

// Bytes written by a block that others do not see yet.
class StoreBuffer {
 public:
  struct Page {
    std::array<uint8_t, kPageBytes> data;
    std::array<uint64_t, kPageBytes / 64> dirty{};  // bits
  };
  struct Late {  // a strong write that waits
    uint64_t address;
    unsigned bytes;
    std::array<uint8_t, 16> data;
  };
  std::unordered_map<uint64_t, std::unique_ptr<Page>> pages;
  std::vector<Late> late;
  uint64_t last_number = ~uint64_t(0);
  Page* last = nullptr;
  uint64_t acquired = 0;  // the memory's version at the block's last fence

  Page* find(uint64_t number);
};

class WeakMemory {
 public:
  explicit WeakMemory(uint64_t seed = 1) : random_(seed * 0x9e3779b97f4a7c15u | 1) {}
  // `bytes` of them, inside a page.
  void load(StoreBuffer& block, uint32_t id, uint64_t address, unsigned bytes, uint8_t* to);
  void store(StoreBuffer& block, uint32_t id, uint64_t address, unsigned bytes, const uint8_t* from,
             bool strong);
  // Before an update: the block's own bytes there reach the memory.
  void settle(StoreBuffer& block, uint32_t id, uint64_t address, unsigned bytes);
  // All that the block wrote reaches the memory. acquire: it sees what others did.
  void flush(StoreBuffer& block, uint32_t id);
  // The block waits: its strong writes reach the memory, in any order.
  void drain(StoreBuffer& block, uint32_t id);
  void acquire(StoreBuffer& block) { block.acquired = version_; }
  // Remembers what an update overwrites.
  void before_write(uint32_t id, uint64_t address, unsigned bytes);

 private:
  // What was in the memory before the last write to each 4 bytes.
  struct History {
    std::array<uint8_t, kPageBytes> before;
    std::array<uint64_t, kPageBytes / 4> version{};
    std::array<uint32_t, kPageBytes / 4> writer{};
    std::unordered_map<uint64_t, uint64_t> looked;  // (block, place) -> version that it has seen
  };
  History* find(uint64_t number, bool make);
  void write_through(uint32_t id, uint64_t address, unsigned bytes, const uint8_t* from);

  std::unordered_map<uint64_t, std::unique_ptr<History>> pages_;
  uint64_t last_number_ = ~uint64_t(0);
  History* last_ = nullptr;
  uint64_t version_ = 0;
  uint64_t random_;
};

}  // namespace ptx
