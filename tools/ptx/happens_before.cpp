#include "happens_before.h"

#include <algorithm>

#include "warp.h"

namespace ptx {

bool View::covers(const Record& r) const {
  if (r.block < base.size() && r.time < base[r.block]) return true;
  if (r.several) return false;
  for (const Part& p : parts)
    if (p.block == r.block && p.thread == r.thread && r.time <= p.time) return true;
  return false;
}

void View::raise(uint32_t block, uint32_t time) {
  if (base.size() <= block) base.resize(block + 1, 0);
  base[block] = std::max(base[block], time);
}

void View::add(Part part) {
  for (Part& p : parts)
    if (p.block == part.block && p.thread == part.thread) {
      p.time = std::max(p.time, part.time);
      return;
    }
  parts.push_back(part);
}

void View::join(const View& other) {
  if (base.size() < other.base.size()) base.resize(other.base.size(), 0);
  for (size_t b = 0; b < other.base.size(); ++b) base[b] = std::max(base[b], other.base[b]);
  for (const Part& p : other.parts) add(p);
  const auto is_told = [&](const Part& p) {
    return p.block < base.size() && p.time < base[p.block];
  };
  parts.erase(std::remove_if(parts.begin(), parts.end(), is_told), parts.end());
}

void BlockOrder::barrier() {
  for (auto& [thread, order] : threads) {
    if (order.known.empty()) continue;
    known.join(order.known);
    order.known = View();
  }
  barrier_time = ++time;
}

namespace {

// What `lane` knows, with its own accesses and its block's before the last barrier.
View all_known(Warp& warp, int lane) {
  BlockOrder& order = warp.block->order;
  View view = order.known;
  const auto own = order.threads.find(warp.thread(lane));
  if (own != order.threads.end()) view.join(own->second.known);
  view.raise(order.id, order.barrier_time);
  if (warp.acquired && warp.acquired_lanes >> lane & 1) view.join(*warp.acquired);
  if (warp.synced > 0)
    for (int l = 0; l < kLanes; ++l)
      view.add({order.id, warp.synced - 1, uint16_t(warp.thread(l))});
  if (warp.lane_synced)
    for (int l = 0; l < kLanes; ++l)
      if (const uint32_t time = (*warp.lane_synced)[size_t(lane)][size_t(l)])
        view.add({order.id, time - 1, uint16_t(warp.thread(l))});
  view.add({order.id, order.time, uint16_t(warp.thread(lane))});
  return view;
}

void remember(std::vector<SharedView>& seen, const SharedView& view) {
  if (!view || std::find(seen.begin(), seen.end(), view) != seen.end()) return;
  seen.push_back(view);
  if (seen.size() <= 8) return;
  auto all = std::make_shared<View>();
  for (const SharedView& v : seen) all->join(*v);
  seen.assign(1, all);
}

bool is_ordered(const Warp& warp, int lane, const Record& r) {
  if (r.bytes == 0) return true;
  const BlockOrder& order = warp.block->order;
  const uint32_t thread = warp.thread(lane);
  if (r.block == order.id) {
    if (r.time < order.barrier_time) return true;
    if (!r.several) {
      if (r.thread == thread) return true;
      if (r.thread / kLanes == uint32_t(warp.index)) {
        if (r.time < warp.synced) return true;
        if (warp.lane_synced && r.time < (*warp.lane_synced)[size_t(lane)][r.thread % kLanes])
          return true;
      }
    }
  } else if (order.known.covers(r)) {
    return true;
  }
  if (warp.acquired && warp.acquired_lanes >> lane & 1 && warp.acquired->covers(r)) return true;
  if (order.threads.empty()) return false;
  const auto own = order.threads.find(thread);
  return own != order.threads.end() && own->second.known.covers(r);
}

// Whether two strong accesses are so for each other.
bool are_strong(const Record& r, uint32_t block, Strength now) {
  if (!r.strong || !now.strong) return false;
  return r.block == block || (r.strong_device && now.device);
}

inline bool conflicts(const Warp& warp, int lane, const Record& r, unsigned mask,
                      Strength strength) {
  if ((r.bytes & mask) == 0) return false;
  const BlockOrder& order = warp.block->order;
  if (r.block == order.id && r.time < order.barrier_time) return false;  // most often
  return !are_strong(r, warp.block->order.id, strength) && !is_ordered(warp, lane, r);
}

Record record_of(const Warp& warp, int lane, unsigned mask, Strength strength) {
  Record r;
  r.time = warp.block->order.time;
  r.block = warp.block->order.id;
  r.thread = uint16_t(warp.thread(lane));
  r.bytes = uint8_t(mask);
  r.strong = strength.strong;
  r.strong_device = strength.strong && strength.device;
  return r;
}

// A read joins those that are recorded since the last write.
void add_read(Record& read, const Record& now, uint32_t barrier_time) {
  if (read.bytes != 0 && read.block == now.block && read.time >= barrier_time &&
      (read.several || read.thread != now.thread)) {
    read.several = 1;
    read.strong &= now.strong;
    read.strong_device &= now.strong_device;
    read.bytes |= now.bytes;
    read.time = now.time;
  } else {
    read = now;
  }
}

// A write replaces what it overwrites; bytes beside it stay recorded where that costs nothing.
void set_write(Record& write, const Record& now) {
  const bool same = write.bytes != 0 && write.time == now.time && write.block == now.block &&
                    write.thread == now.thread && write.strong == now.strong;
  const uint8_t before = same ? write.bytes : uint8_t(0);
  write = now;
  write.bytes |= before;
}

unsigned bytes_in_cell(uint64_t address, unsigned bytes) {
  return ((1u << (bytes < 4 ? bytes : 4u)) - 1) << (address % 4);
}

}  // namespace

void fence(Warp& warp, int lane, bool device) {
  BlockOrder& order = warp.block->order;
  ThreadOrder& own = order.threads[warp.thread(lane)];
  for (int scope = 0; scope <= int(device); ++scope) {
    for (const SharedView& view : own.seen[scope]) own.known.join(*view);
    own.seen[scope].clear();
  }
  const auto view = std::make_shared<const View>(all_known(warp, lane));
  for (int scope = 0; scope <= int(device); ++scope) own.fenced[scope] = view;
  ++order.time;
}

void strong_access(Warp& warp, int lane, uint64_t address, StrongKind kind, Strength strength) {
  BlockOrder& order = warp.block->order;
  auto& released = warp.block->launch->global_order.released;
  const auto at = released.find(address);
  if (kind != StrongKind::write && at != released.end()) {
    ThreadOrder& own = order.threads[warp.thread(lane)];
    const bool same_block = at->second.block == order.id;
    for (int scope = 0; scope < 2; ++scope) {
      const SharedView& view = at->second.view[scope];
      if (!view || (scope == 0 && !same_block)) continue;
      remember(own.seen[scope], view);
      if (strength.acquires && (strength.device || same_block)) own.known.join(*view);
    }
  }
  if (kind == StrongKind::read) return;
  SharedView views[2];
  const auto own = order.threads.find(warp.thread(lane));
  if (own != order.threads.end())
    for (int scope = 0; scope < 2; ++scope) views[scope] = own->second.fenced[scope];
  if (strength.releases) {
    views[0] = std::make_shared<const View>(all_known(warp, lane));
    if (strength.device) views[1] = views[0];
    ++order.time;
  }
  if (!views[0]) {
    // A read and write goes on with the release sequence that it read from; a write ends it.
    if (kind == StrongKind::write && at != released.end()) released.erase(at);
    return;
  }
  Released now;
  now.block = order.id;
  for (int scope = 0; scope < 2; ++scope) {
    now.view[scope] = views[scope];
    if (kind != StrongKind::update || at == released.end()) continue;
    const SharedView& before = at->second.view[scope];
    if (!before || (scope == 0 && at->second.block != order.id)) continue;
    auto both = std::make_shared<View>(*before);
    if (now.view[scope]) both->join(*now.view[scope]);
    now.view[scope] = both;
  }
  released[address] = now;
}

Race SharedShadow::access(Warp& warp, int lane, uint64_t offset, unsigned bytes, bool reads,
                          bool writes, Strength strength, bool checks_races, bool* unwritten) {
  Race race;
  const Block& block = *warp.block;
  const uint32_t barrier_time = block.order.barrier_time;
  // Whether what is recorded may be of the block's own time before its last barrier.
  const auto is_recent = [&](const Record& r) { return block.cluster || r.time >= barrier_time; };
  const bool is_remote = this != &block.shared_shadow;
  for (uint64_t at = offset; at < offset + bytes; at += 4) {
    Cell& cell = cells_[at / 4];
    const unsigned mask = bytes_in_cell(at, bytes);
    if (reads && (cell.written & mask) != mask) *unwritten = true;
    if (writes) cell.written |= uint8_t(mask);
    if (!checks_races) continue;
    if (is_recent(cell.write) && conflicts(warp, lane, cell.write, mask, strength))
      race = {reads && !writes ? "a read of what another thread writes" : "two writes", cell.write};
    const Record now = record_of(warp, lane, mask, strength);
    if (writes) {
      const auto check = [&](const Record& read) {
        if (is_recent(read) && conflicts(warp, lane, read, mask, strength))
          race = {"a write of what another thread reads", read};
      };
      check(cell.read);
      const auto remote = remote_reads_.empty() ? remote_reads_.end() : remote_reads_.find(at / 4);
      if (remote != remote_reads_.end())
        for (const Record& read : remote->second) check(read);
      set_write(cell.write, now);
      if (!strength.strong) {
        cell.read = Record();
        if (remote != remote_reads_.end()) remote_reads_.erase(remote);
      }
    } else if (is_remote) {
      auto& all = remote_reads_[at / 4];
      const auto same = std::find_if(all.begin(), all.end(),
                                     [&](const Record& r) { return r.block == now.block; });
      if (same == all.end())
        all.push_back(now);
      else
        add_read(*same, now, barrier_time);
    } else {
      add_read(cell.read, now, barrier_time);
    }
  }
  return race;
}

GlobalShadow::Cell* GlobalShadow::find(uint64_t number) {
  auto& found = pages_[number];
  if (!found) found = std::make_unique<Cell[]>(kCells);
  known_[number % kKnown] = {number, found.get()};
  return found.get();
}

Race GlobalShadow::access(Warp& warp, int lane, uint64_t address, unsigned bytes, bool reads,
                          bool writes, Strength strength) {
  Race race;
  const BlockOrder& order = warp.block->order;
  for (uint64_t at = address; at < address + bytes; at += 4) {
    Cell& cell = page(at / (4 * kCells))[at / 4 % kCells];
    const unsigned mask = bytes_in_cell(at, bytes);
    if (conflicts(warp, lane, cell.write, mask, strength))
      race = {reads && !writes ? "a read of what another thread writes" : "two writes", cell.write};
    const Record now = record_of(warp, lane, mask, strength);
    if (writes) {
      for (const Record* read : {&cell.read, &cell.other_read})
        if (conflicts(warp, lane, *read, mask, strength))
          race = {"a write of what another thread reads", *read};
      set_write(cell.write, now);
      if (!strength.strong) cell.read = cell.other_read = Record();
    } else {
      Record& read =
          cell.read.bytes != 0 && cell.read.block != order.id ? cell.other_read : cell.read;
      add_read(read, now, order.barrier_time);
    }
  }
  return race;
}

}  // namespace ptx
