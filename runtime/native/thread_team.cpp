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
// Others are finishing their pieces, which takes microseconds unless they have lost their core:
// then it is better to give them ours.
constexpr int piece_spins = 2000;

inline void pause() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
    __asm__ __volatile__("yield");
#endif
}

inline void yield() { std::this_thread::yield(); }

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

void ThreadTeam::run(const std::function<void(Member&)>& body) {
    body_ = &body;
    first_ = completed_.load(std::memory_order_relaxed);
    // Sequentially consistent, like `inside_` and `sleepers_`: one side always sees the other.
    open_.store(true);
    calls_.fetch_add(1);
    if (sleepers_.load() > 0) {
        { const std::lock_guard<std::mutex> lock(mutex_); }
        wake_.notify_all();
    }
    Member caller(*this, 0);
    body(caller);
    open_.store(false);
    for (int spin = 0; inside_.load() > 0; ++spin) spin < piece_spins ? pause() : yield();
}

void ThreadTeam::work(int index) {
    uint32_t seen = 0;
    for (;;) {
        for (int spin = 0; spin < idle_spins && calls_.load() == seen; ++spin) pause();
        if (calls_.load() == seen) {
            std::unique_lock<std::mutex> lock(mutex_);
            sleepers_.fetch_add(1);
            wake_.wait(lock, [&] { return calls_.load() != seen; });
            sleepers_.fetch_sub(1);
        }
        seen = calls_.load();
        if (stopping_.load()) return;
        inside_.fetch_add(1);
        if (open_.load()) {  // else the others have finished without us
            Member member(*this, index);
            (*body_)(member);
        }
        inside_.fetch_sub(1);
    }
}

int64_t ThreadTeam::claim(int64_t end) {
    int64_t piece = claimed_.load(std::memory_order_relaxed);
    while (piece < end) {
        if (claimed_.compare_exchange_weak(piece, piece + 1, std::memory_order_acq_rel)) return piece;
    }
    return -1;
}

void ThreadTeam::wait_for(int64_t end) {
    for (int spin = 0; completed_.load(std::memory_order_acquire) < end; ++spin) {
        spin < piece_spins ? pause() : yield();
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
