#include "thread_team.h"

#include <algorithm>
#include <cstdio>
#include <set>
#include <string>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace dsconv {
namespace {

// About 100 microseconds: longer than sampling a token takes, short enough to leave an idle
// session's cores to others.
constexpr int idle_spins = 4000;
// At a barrier the others are at work, so it pays to wait longer before giving up the core.
constexpr int barrier_spins = 20000;

inline void pause() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
    __asm__ __volatile__("yield");
#endif
}

#if defined(__linux__)
// The number in a file such as topology/core_id, or -1.
int read_number(const std::string& path) {
    int value = -1;
    if (std::FILE* file = std::fopen(path.c_str(), "r")) {
        if (std::fscanf(file, "%d", &value) != 1) value = -1;
        std::fclose(file);
    }
    return value;
}
#endif

}  // namespace

ThreadTeam::ThreadTeam(int threads) : size_(std::max(1, threads)) {
    for (int member = 1; member < size_; ++member) {
        threads_.emplace_back([this, member] { work(member); });
    }
}

ThreadTeam::~ThreadTeam() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
        calls_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
}

void ThreadTeam::run(const std::function<void(int)>& body) {
    body_ = &body;
    next_.store(0, std::memory_order_relaxed);
    calls_.fetch_add(1);  // sequentially consistent, like the sleepers' count: one sees the other
    if (sleepers_.load() > 0) {
        { const std::lock_guard<std::mutex> lock(mutex_); }
        wake_.notify_all();
    }
    body(0);
    barrier();
}

void ThreadTeam::work(int member) {
    uint32_t seen = 0;
    for (;;) {
        for (int spin = 0; spin < idle_spins && calls_.load(std::memory_order_acquire) == seen;
             ++spin) {
            pause();
        }
        if (calls_.load(std::memory_order_acquire) == seen) {
            std::unique_lock<std::mutex> lock(mutex_);
            sleepers_.fetch_add(1);
            wake_.wait(lock, [&] { return calls_.load() != seen; });
            sleepers_.fetch_sub(1);
        }
        seen = calls_.load(std::memory_order_acquire);
        if (stopping_.load(std::memory_order_acquire)) return;
        (*body_)(member);
        barrier();
    }
}

void ThreadTeam::barrier() {
    if (size_ == 1) {
        next_.store(0, std::memory_order_relaxed);
        return;
    }
    const uint32_t passed = passed_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        next_.store(0, std::memory_order_relaxed);
        passed_.store(passed + 1, std::memory_order_release);
        return;
    }
    for (int spin = 0; passed_.load(std::memory_order_acquire) == passed; ++spin) {
        if (spin < barrier_spins) {
            pause();
        } else {
            std::this_thread::yield();
        }
    }
}

int default_threads() {
#if defined(__linux__)
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
        std::set<std::pair<int, int>> cores;
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
            if (!CPU_ISSET(cpu, &allowed)) continue;
            const std::string topology =
                "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
            const int core = read_number(topology + "core_id");
            cores.emplace(read_number(topology + "physical_package_id"), core < 0 ? cpu : core);
        }
        if (!cores.empty()) return static_cast<int>(cores.size());
    }
#endif
    return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

}  // namespace dsconv
