// The engine's own threads: one team that runs the same function on every member.
//
// Between calls the members spin for a moment (the next token comes soon), then sleep. Within a
// call they share work by a counter and wait for each other at barriers; who does which share
// must not change any result.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace dsconv {

class ThreadTeam {
   public:
    // The caller of run() is member 0, so `threads` - 1 threads are started.
    explicit ThreadTeam(int threads);
    ~ThreadTeam();
    ThreadTeam(const ThreadTeam&) = delete;
    ThreadTeam& operator=(const ThreadTeam&) = delete;

    int size() const { return size_; }

    // Runs body(member) on every member; returns when all have finished. Exceptions must not
    // leave the body.
    void run(const std::function<void(int)>& body);

    // Within run(): hands out [0, total) in pieces of `grain` as body(begin, end), then waits
    // until all members have finished theirs. Every member must call it with the same arguments.
    template <class Body>
    void share(int64_t total, int64_t grain, Body&& body) {
        for (;;) {
            const int64_t begin = next_.fetch_add(grain, std::memory_order_relaxed);
            if (begin >= total) break;
            body(begin, begin + grain < total ? begin + grain : total);
        }
        barrier();
    }

   private:
    void work(int member);
    void barrier();

    const int size_;
    std::vector<std::thread> threads_;
    const std::function<void(int)>* body_ = nullptr;
    alignas(64) std::atomic<int64_t> next_{0};  // of the current share
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> passed_{0};  // barriers so far
    alignas(64) std::atomic<uint32_t> calls_{0};
    std::atomic<int> sleepers_{0};
    std::atomic<bool> stopping_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
};

// Physical cores that this process may use.
int default_threads();

}  // namespace dsconv
