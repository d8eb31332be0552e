// The engine's own threads: one team that runs the same function on every member.
//
// Between calls the members spin for a moment (the next token comes soon), then sleep. Within a
// call they pass the same shares of work in the same order, and a share is over when all its
// pieces are done, whoever did them: nobody waits for a member that the system has put aside while
// it holds no piece. Who does which piece must not change any result.
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
    // What the function is given: a member's view of the call.
    class Member {
       public:
        int index() const { return index_; }

        // Hands out [0, total) in pieces of `grain` as body(begin, end); returns when all pieces
        // are done. Every member must come by with the same arguments.
        template <class Body>
        void share(int64_t total, int64_t grain, Body&& body) {
            const int64_t first = end_;
            end_ += (total + grain - 1) / grain;
            for (;;) {
                const int64_t piece = team_.claim(end_);
                if (piece < 0) break;
                const int64_t begin = (piece - first) * grain;
                body(begin, begin + grain < total ? begin + grain : total);
                team_.completed_.fetch_add(1, std::memory_order_acq_rel);
            }
            team_.wait_for(end_);
        }

       private:
        friend class ThreadTeam;
        Member(ThreadTeam& team, int index) : team_(team), index_(index), end_(team.first_) {}

        ThreadTeam& team_;
        const int index_;
        int64_t end_;  // of the pieces so far; they are numbered through all calls
    };

    // The caller of run() is member 0, so `threads` - 1 threads are started.
    explicit ThreadTeam(int threads);
    ~ThreadTeam();
    ThreadTeam(const ThreadTeam&) = delete;
    ThreadTeam& operator=(const ThreadTeam&) = delete;

    int size() const { return size_; }

    // Runs body on the members that are awake in time, the caller surely; returns when the caller
    // has finished and no other is inside. Exceptions must not leave the body.
    void run(const std::function<void(Member&)>& body);

   private:
    void work(int index);
    // The next piece below `end`, or -1.
    int64_t claim(int64_t end);
    void wait_for(int64_t end);

    const int size_;
    std::vector<std::thread> threads_;
    const std::function<void(Member&)>* body_ = nullptr;
    int64_t first_ = 0;  // piece of the call
    alignas(64) std::atomic<int64_t> claimed_{0};
    alignas(64) std::atomic<int64_t> completed_{0};
    alignas(64) std::atomic<uint32_t> calls_{0};
    std::atomic<bool> open_{false};  // may members enter the call?
    std::atomic<int> inside_{0};
    std::atomic<int> sleepers_{0};
    std::atomic<bool> stopping_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
};

// Physical cores that this process may use.
int default_threads();

}  // namespace dsconv
