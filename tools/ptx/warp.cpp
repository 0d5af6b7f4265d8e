// A warp in lock step: the group of lanes that runs, those that wait for it, calls and branches.
#include "warp.h"

#include <algorithm>
#include <cstring>

#include "counter.h"

namespace ptx {

namespace {

// Whether lanes at `a` run before lanes at `b`: inner calls first, then by the order of blocks.
bool runs_before(const Group& a, const Group& b) {
  if (a.frame->depth != b.frame->depth) return a.frame->depth > b.frame->depth;
  if (a.frame != b.frame) return a.frame->serial < b.frame->serial;
  return a.frame->code->order[size_t(a.at)] < b.frame->code->order[size_t(b.at)];
}

void set_current(Warp& w, const Group& group) {
  w.current = group;
  w.registers = group.frame ? group.frame->registers : nullptr;
}

// Lanes that are at one place go on together.
void add_waiting(Warp& w, const Group& group) {
  if (group.lanes == 0) return;
  for (Group& other : w.waiting) {
    if (other.frame != group.frame || other.at != group.at) continue;
    other.lanes |= group.lanes;
    return;
  }
  w.waiting.push_back(group);
}

// Takes the group that is to run next; false: none can.
bool take_next(Warp& w) {
  if (w.waiting.empty()) {
    set_current(w, Group());
    return false;
  }
  size_t best = 0;
  for (size_t k = 1; k < w.waiting.size(); ++k)
    if (runs_before(w.waiting[k], w.waiting[best])) best = k;
  set_current(w, w.waiting[best]);
  w.waiting.erase(w.waiting.begin() + ptrdiff_t(best));
  return true;
}

// At the beginning of a basic block: others may be here too, or come first.
void meet(Warp& w) {
  add_waiting(w, w.current);
  take_next(w);
}

void copy_parameters(const std::vector<Call::Copy>& copies, const Frame& from, Frame& to,
                     Mask lanes) {
  for (const Call::Copy& c : copies)
    each_lane(lanes, [&](int l) {
      std::memcpy(&to.parameters[size_t(l) * size_t(to.code->parameter_bytes) + size_t(c.to)],
                  &from.parameters[size_t(l) * size_t(from.code->parameter_bytes) + size_t(c.from)],
                  size_t(c.bytes));
    });
}

void enter_call(Warp& w, const Instruction& i, Mask m) {
  Frame* caller = w.current.frame;
  Call& call = caller->code->calls[size_t(i.extra)];
  if (!call.callee) {
    Code& callee = code_of(*caller->code->module, call.name);
    call.callee = &callee;
    const Function& f = *callee.function;
    for (size_t k = 0; k < f.parameters.size(); ++k)
      call.arguments.push_back(
          {call.argument_places[k], callee.parameter_places[k], f.parameters[k].bytes});
    for (size_t k = 0; k < f.results.size(); ++k)
      call.results.push_back({callee.result_places[k], call.result_places[k], f.results[k].bytes});
  }
  if (caller->depth > 200) fault(w, i, first_lane(m), "calls too deep", call.name);
  const Mask rest = w.current.lanes & ~m;
  add_waiting(w, {caller, w.current.at + 1, rest});
  Frame* inner = new_frame(w, const_cast<Code&>(*call.callee), caller, w.current.at + 1, m);
  copy_parameters(call.arguments, *caller, *inner, m);
  if (Counter* counter = w.block->launch->counter) counter->pass(*caller, *inner, call.arguments);
  set_current(w, {inner, 0, m});
}

void leave(Warp& w, const Instruction& i, Mask m) {
  Frame* frame = w.current.frame;
  const Group rest{frame, w.current.at + 1, w.current.lanes & ~m};
  if (rest.lanes) add_waiting(w, rest);
  frame->live &= ~m;
  if (frame->parent && i.control == Control::leave) {
    const Instruction& call = frame->parent->code->instructions[size_t(frame->return_to - 1)];
    const auto& results = frame->parent->code->calls[size_t(call.extra)].results;
    copy_parameters(results, *frame, *frame->parent, m);
    if (Counter* counter = w.block->launch->counter) counter->pass(*frame, *frame->parent, results);
    add_waiting(w, {frame->parent, frame->return_to, m});
  } else {
    each_lane(m, [&](int l) {
      if (w.copies[l].empty()) return;
      report(w, *w.copies[l].front().instruction, l, "asynchronous copy without a wait",
             "the thread ends before it waits for it");
      w.committed[l] += 1;
      land_copies(w, l, 0);
    });
    end_in_cluster(w, i, m);
    w.exited |= m;
    for (Frame* f = frame->parent; f; f = f->parent) f->live &= ~m;
  }
  if (frame->live == 0) free_frame(frame);
  take_next(w);
}

// The lanes that an instruction names and that are alive must all be at it.
bool are_together(Warp& w, const Instruction& i, Mask m) {
  const uint32_t* members = w.at<uint32_t>(i.source[0]);
  Mask wanted = 0;
  each_lane(m, [&](int l) {
    if (!(members[l] >> l & 1))
      report(w, i, l, "lane outside its mask",
             "lane " + std::to_string(l) + " is not in the mask that it gives");
    wanted |= members[l];
  });
  wanted &= w.exists;
  if ((wanted & w.exited) != 0) {
    report(w, i, first_lane(m), "mask names lanes that have ended",
           "lane " + std::to_string(first_lane(wanted & w.exited)));
    wanted &= ~w.exited;
  }
  return (wanted & ~m) == 0;
}

// Lanes that wait at the same collective join the current group.
Mask join_collective(Warp& w) {
  auto& all = w.at_collective;
  for (size_t k = 0; k < all.size(); ++k) {
    if (all[k].frame != w.current.frame || all[k].at != w.current.at) continue;
    w.current.lanes |= all[k].lanes;
    all.erase(all.begin() + ptrdiff_t(k));
    break;
  }
  return w.current.lanes;
}

void wait_at_barrier(Warp& w, const Instruction& i, Mask m) {
  const uint32_t number = w.at<uint32_t>(i.source[0])[first_lane(m)];
  if (number > 15)
    fault(w, i, first_lane(m), "barrier of a number above 15", std::to_string(number));
  AtBarrier at;
  at.group = {w.current.frame, w.current.at, m};
  at.instruction = &i;
  at.number = int(number);
  if (i.option & 1) {
    at.expects = int(w.at<uint32_t>(i.source[1])[first_lane(m)]);
    if (at.expects % kLanes || at.expects == 0)
      fault(w, i, first_lane(m), "barrier of threads that are no whole warps",
            std::to_string(at.expects));
  }
  if (i.aligned && m != w.living())
    report(w, i, first_lane(m), "barrier in a diverged warp",
           "only lanes " + std::to_string(m) + " (as a mask) of the warp are at it");
  w.at_barrier.push_back(at);
  add_waiting(w, {w.current.frame, w.current.at + 1, w.current.lanes & ~m});
  if (i.barrier == Barrier::arrive) add_waiting(w, {w.current.frame, w.current.at + 1, m});
}

// A barrier that is left out: an arrival with the wait that belongs to it, or the wait alone.
void meet_cluster(Warp& w, const Instruction& i, Mask m) {
  const bool is_left_out = w.block->launch->options.skip_barrier == w.barriers++;
  const Mask rest = w.current.lanes & ~m;
  bool goes_on = true;
  if (i.control == Control::arrive) {
    if (is_left_out) {
      w.leaves_out |= m;
    } else {
      arrive_in_cluster(w, i, m);
    }
  } else if ((w.leaves_out & m) == m) {
    w.leaves_out &= ~m;
  } else if (!is_left_out) {
    goes_on = wait_in_cluster(w, i, m);
  }
  if (goes_on) {
    ++w.current.at;
    return;
  }
  w.at_cluster.push_back({w.current.frame, w.current.at, m});
  add_waiting(w, {w.current.frame, w.current.at + 1, rest});
  take_next(w);
}

}  // namespace

Frame* new_frame(Warp& w, Code& code, Frame* parent, int return_to, Mask lanes) {
  Launch& launch = *w.block->launch;
  Frame* frame;
  if (code.free_frames.empty()) {
    code.frames.push_back(std::make_unique<Frame>());
    frame = code.frames.back().get();
    frame->code = &code;
    frame->storage.resize(code.registers.size() + 64);
    const auto begin = reinterpret_cast<uintptr_t>(frame->storage.data());
    frame->registers = frame->storage.data() + ((begin + 63) / 64 * 64 - begin);
    if (!code.registers.empty())
      std::memcpy(frame->registers, code.registers.data(), code.registers.size());
    frame->parameters.assign(size_t(code.parameter_bytes) * kLanes, 0xcd);
  } else {
    frame = code.free_frames.back();
    code.free_frames.pop_back();
  }
  frame->parent = parent;
  frame->return_to = return_to;
  frame->depth = parent ? parent->depth + 1 : 0;
  frame->serial = ++launch.frames_made;
  frame->live = lanes;
  frame->local_base = parent ? parent->local_base + parent->code->local_bytes : 0;
  if (code.local_bytes > 0) {
    const size_t begin = size_t(frame->local_base), end = begin + size_t(code.local_bytes);
    each_lane(lanes, [&](int l) {
      if (w.local[l].size() < end) {
        w.local[l].resize(end);
        w.local_written[l].resize(end);
      }
      std::memset(&w.local[l][begin], 0xff, end - begin);
      std::memset(&w.local_written[l][begin], 0, end - begin);
    });
  }
  return frame;
}

void free_frame(Frame* frame) {
  while (frame && frame->live == 0) {
    Frame* parent = frame->parent;
    frame->code->free_frames.push_back(frame);
    frame = parent;
  }
}

void start(Warp& w, Code& code) {
  w.waiting.push_back({new_frame(w, code, nullptr, 0, w.exists), 0, w.exists});
}

namespace {

template <bool kCounts>
Progress run_group(Warp& w, int& left) {
  if (w.current.lanes == 0 && !take_next(w))
    return w.living() == 0 ? Progress::finished : Progress::blocked;
  Counter* counter = w.block->launch->counter;
  for (; left > 0; --left) {
    if (w.current.lanes == 0) return w.living() == 0 ? Progress::finished : Progress::blocked;
    Instruction* i = &w.current.frame->code->instructions[size_t(w.current.at)];
    if (i->leads_block && !w.waiting.empty()) {
      meet(w);
      i = &w.current.frame->code->instructions[size_t(w.current.at)];
    }
    Mask m = w.current.lanes;
    if (i->guarded) {
      const Mask p = w.predicate(i->guard);
      m &= i->guard_negated ? ~p : p;
    }
    if constexpr (kCounts) counter->count(w, *i, m);
    switch (i->control) {
      case Control::none:
        if (m != 0) i->handler(w, *i, m);
        ++w.current.at;
        break;
      case Control::branch:
        if (m == w.current.lanes) {
          w.current.at = i->branch;
        } else {
          if (m != 0) {
            if constexpr (kCounts) counter->diverged(w);
            add_waiting(w, {w.current.frame, i->branch, m});
            w.current.lanes &= ~m;
          }
          ++w.current.at;
        }
        break;
      case Control::branch_index: {
        const auto& table = w.current.frame->code->branch_tables[size_t(i->extra)];
        const uint32_t* index = w.at<uint32_t>(i->source[0]);
        const Group now = w.current;
        add_waiting(w, {now.frame, now.at + 1, now.lanes & ~m});
        each_lane(m, [&](int l) {
          if (index[l] >= table.size())
            fault(w, *i, l, "branch beyond its table", std::to_string(index[l]));
          add_waiting(w, {now.frame, table[index[l]], Mask(1) << l});
        });
        take_next(w);
        break;
      }
      case Control::call:
        if (m == 0) {
          ++w.current.at;
        } else {
          enter_call(w, *i, m);
        }
        break;
      case Control::leave:
      case Control::exit:
        if (m == 0) {
          ++w.current.at;
        } else {
          leave(w, *i, m);
        }
        break;
      case Control::barrier:
        if (m == 0) {
          ++w.current.at;
          break;
        }
        if (w.block->launch->options.skip_barrier == w.barriers++ && i->barrier == Barrier::sync) {
          ++w.current.at;
          break;
        }
        wait_at_barrier(w, *i, m);
        take_next(w);
        break;
      case Control::arrive:
      case Control::wait:
        if (m == 0) {
          ++w.current.at;
        } else {
          meet_cluster(w, *i, m);
        }
        break;
      case Control::collective: {
        const Mask skips = w.current.lanes & ~m;
        if (m == 0) {
          ++w.current.at;
          break;
        }
        if (skips) {  // those whose guard is false go on
          add_waiting(w, {w.current.frame, w.current.at + 1, skips});
          w.current.lanes = m;
        }
        m = join_collective(w);
        if (!are_together(w, *i, m)) {
          w.at_collective.push_back(w.current);
          take_next(w);
          break;
        }
        i->handler(w, *i, m);
        ++w.current.at;
        break;
      }
      case Control::sleep:
        ++w.current.at;
        if (m != 0) return Progress::slept;
        break;
      case Control::trap:
        if (m != 0) fault(w, *i, first_lane(m), "trap", "the program stops itself");
        ++w.current.at;
        break;
    }
  }
  return Progress::interrupted;
}

}  // namespace

Progress run(Warp& w, int quantum) {
  Launch& launch = *w.block->launch;
  int left = quantum;
  const Progress p = launch.counter ? run_group<true>(w, left) : run_group<false>(w, left);
  launch.totals.instructions += uint64_t(quantum - left);
  return p;
}

}  // namespace ptx
