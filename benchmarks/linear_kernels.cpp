// Speed of the matrix kernels beside what the machine can do, measured in the same rounds.
//
//   decode:  bytes of weights per second against a plain read loop over the same memory
//   rows:    the same for 1, 2, 4, … 32 tokens at once, and the arithmetic against that of bare tiles
//   prefill: multiply-adds (as 2 operations) per second
//
// Build and run from the repository root:
//   g++ -std=c++17 -O3 -ffp-contract=off -pthread -iquote runtime/native benchmarks/linear_kernels.cpp
//       $(find runtime/native/linear -name '*.cpp' ! -name binding.cpp) -o build/linear_kernels && build/linear_kernels
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <sys/mman.h>

#include "linear/geometry.h"

using namespace dsconv;

namespace {

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

// Threads that spin between pieces of work.
class Team {
  public:
    explicit Team(int size) : size_(size) {
        for (int i = 1; i < size; i++) threads_.emplace_back([this, i] { serve(i); });
    }
    ~Team() {
        work_ = nullptr;
        generation_++;
        for (auto& thread : threads_) thread.join();
    }
    int size() const { return size_; }

    void run(const std::function<void(int)>& work) {
        work_ = &work;
        waiting_ = size_ - 1;
        generation_++;
        work(0);
        while (waiting_ != 0) {}
    }

  private:
    void serve(int index) {
        for (int seen = 0;; seen++) {
            while (generation_ == seen) {}
            if (!work_) return;
            (*work_.load())(index);
            waiting_--;
        }
    }

    int size_;
    std::atomic<int> generation_{0}, waiting_{0};
    std::atomic<const std::function<void(int)>*> work_{nullptr};
    std::vector<std::thread> threads_;
};

struct Memory {
    size_t size;
    uint8_t* data;

    explicit Memory(size_t bytes) : size(bytes) {
        data = static_cast<uint8_t*>(std::aligned_alloc(1 << 21, bytes));
        madvise(data, bytes, MADV_HUGEPAGE);
        // No infinite scales: all halves are below 2.
        uint32_t state = 1;
        for (size_t i = 0; i < bytes; i++) {
            state = state * 1664525 + 1013904223;
            data[i] = static_cast<uint8_t>(state >> 26);
        }
    }
    ~Memory() { std::free(data); }
};

typedef uint64_t Wide __attribute__((vector_size(64)));

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512bw")))
#endif
uint64_t read_all(const uint8_t* data, size_t bytes) {
    Wide sums[8] = {};
    for (size_t i = 0; i + 512 <= bytes; i += 512) {
        for (int j = 0; j < 8; j++) {
            sums[j] += *reinterpret_cast<const Wide*>(data + i + 64 * j);
        }
    }
    uint64_t total = 0;
    for (auto& sum : sums) total += sum[0] ^ sum[7];
    return total;
}

double read_seconds(Team& team, const Memory& memory) {
    static std::atomic<uint64_t> sink{0};
    double start = now();
    team.run([&](int i) {
        size_t part = memory.size / team.size() / 512 * 512;
        sink += read_all(memory.data + i * part, part);
    });
    return now() - start;
}

constexpr Precision precisions[] = {Precision::int8, Precision::mixed, Precision::own, Precision::int16};

struct Case {
    std::string name;
    LinearView view;
    Precision precision;
    int64_t tokens;
};

struct Run {
    std::vector<uint8_t> storage;
    size_t scratch_bytes;  // of a thread
    uint8_t* scratch;
    Activations x;
    std::unique_ptr<Memory> out;

    Run(const LinearKernels& kernels, const Case& c, int threads)
        : scratch_bytes((kernels.scratch_bytes + 63) / 64 * 64),
          out(new Memory(round_up(c.tokens * c.view.rows * 4, 1 << 21))) {
        ActivationShape shape = activation_shape(kernels, c.view, c.tokens, c.precision);
        storage.resize(activation_bytes(shape) + scratch_bytes * threads + 64);
        auto address = reinterpret_cast<uintptr_t>(storage.data());
        scratch = reinterpret_cast<uint8_t*>((address + 63) / 64 * 64);
        x = place_activations(shape, scratch + scratch_bytes * threads);
        std::vector<float> values(c.tokens * c.view.cols);
        uint32_t state = 7;
        for (float& value : values) {  // a sum of uniform ones: nearly normal
            value = 0;
            for (int j = 0; j < 6; j++) {
                state = state * 1664525 + 1013904223;
                value += static_cast<float>(state >> 8) * 0x1p-24f - 0.5f;
            }
        }
        kernels.quantize(values.data(), c.view.cols, x, 0, activation_tiles(shape));
    }
};

// -> {bytes read, seconds} of one walk over the memory as matrices one after the other.
std::pair<double, double> walk(Team& team, const LinearKernels& kernels, const Memory& memory,
                               const Case& c, Run& run, int64_t most) {
    int64_t bytes = static_cast<int64_t>(linear_bytes(c.view));
    int64_t copies = std::min<int64_t>(most, static_cast<int64_t>(memory.size) / bytes);
    int64_t blocks = linear_blocks_of(c.view);
    double start = now();
    team.run([&](int i) {
        for (int64_t copy = 0; copy < copies; copy++) {
            LinearView view = c.view;
            view.data = memory.data + copy * bytes;
            kernels.linear(view, run.x, reinterpret_cast<float*>(run.out->data), view.rows, blocks * i / team.size(),
                           blocks * (i + 1) / team.size(), Epilogue{},
                           run.scratch + i * run.scratch_bytes);
        }
    });
    return {static_cast<double>(bytes * copies), now() - start};
}

LinearView view_of(LinearKind kind, int64_t rows, int64_t cols, int64_t group, bool zeros = false) {
    return LinearView{kind, rows, cols, group, zeros, nullptr};
}

std::vector<std::pair<std::string, LinearView>> kinds(int64_t rows, int64_t cols) {
    return {
        {"int4 g32", view_of(LinearKind::int4, rows, cols, 32)},
        {"int4 g128", view_of(LinearKind::int4, rows, cols, 128)},
        {"int4 g128 zeros", view_of(LinearKind::int4, rows, cols, 128, true)},
        {"int4 row", view_of(LinearKind::int4, rows, cols, 0)},
        {"int8 g32", view_of(LinearKind::int8, rows, cols, 32)},
        {"int8 g128", view_of(LinearKind::int8, rows, cols, 128)},
        {"scale_min3", view_of(LinearKind::scale_min3, rows, cols, 0)},
        {"scale_min4", view_of(LinearKind::scale_min4, rows, cols, 0)},
        {"scale_min5", view_of(LinearKind::scale_min5, rows, cols, 0)},
        {"scale_min6", view_of(LinearKind::scale_min6, rows, cols, 0)},
        {"bfloat16", view_of(LinearKind::bfloat16, rows, cols, 0)},
    };
}

// A part of the name, or with = before it the whole.
bool is_wanted(const std::string& name, const std::string& only) {
    return only[0] == '=' ? name == only.substr(1) : name.find(only) != std::string::npos;
}

void decode(Team& team, const LinearKernels& kernels, const Memory& memory, int64_t tokens,
            int rounds, const std::string& only) {
    std::vector<Case> cases;
    for (auto [rows, cols] : {std::pair<int64_t, int64_t>{8960, 1536}, {1536, 8960}}) {
        for (auto& [name, view] : kinds(rows, cols)) {
            if (!is_wanted(name, only)) continue;
            for (Precision precision : {Precision::int8, Precision::int16}) {
                if (view.kind == LinearKind::bfloat16 && precision == Precision::int16) continue;
                std::string full = name + (precision == Precision::int8 ? " x int8 " : " x int16 ");
                full += std::to_string(rows) + "x" + std::to_string(cols);
                cases.push_back({full, view, precision, tokens});
            }
        }
    }
    std::vector<Run> runs;
    for (auto& c : cases) runs.emplace_back(kernels, c, team.size());
    std::vector<double> reads;
    std::vector<std::vector<double>> speeds(cases.size()), ratios(cases.size());
    for (int round = 0; round < rounds; round++) {
        for (size_t i = 0; i < cases.size(); i++) {
            double read = static_cast<double>(memory.size) / read_seconds(team, memory);
            auto [bytes, seconds] = walk(team, kernels, memory, cases[i], runs[i], 1 << 20);
            reads.push_back(read);
            speeds[i].push_back(bytes / seconds);
            ratios[i].push_back(bytes / seconds / read);
        }
    }
    std::printf("decode, %d tokens; plain read %.1f GB/s\n", static_cast<int>(tokens),
                median(reads) / 1e9);
    for (size_t i = 0; i < cases.size(); i++) {
        std::printf("  %-32s %6.1f GB/s  %5.1f %% of the read beside it\n", cases[i].name.c_str(),
                    median(speeds[i]) / 1e9, 100 * median(ratios[i]));
    }
}

const char* label_of(Precision precision) {
    switch (precision) {
        case Precision::int8: return " x int8 ";
        case Precision::mixed: return " x mixed ";
        case Precision::own: return " x own ";
        default: return " x int16 ";
    }
}

// Operations per second of a thread's tiles alone, 0 where there are none.
double bare_tiles(Team& team) {
#if defined(__x86_64__) && defined(__linux__)
    if (!linear_kernels(Isa::amx_int8)) return 0;
    struct alignas(64) {
        uint8_t palette = 1, rest[15] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } tiles;
    constexpr int64_t loops = 400000;
    double start = now();
    team.run([&](int) {
        asm volatile("ldtilecfg %0" : : "m"(tiles));
        for (int64_t i = 0; i < loops; i++) {
            asm volatile(
                "tdpbssd %tmm4, %tmm6, %tmm0\n tdpbssd %tmm5, %tmm6, %tmm1\n"
                "tdpbssd %tmm4, %tmm7, %tmm2\n tdpbssd %tmm5, %tmm7, %tmm3\n");
        }
        asm volatile("tilerelease");
    });
    return 4 * loops * 2.0 * 16 * 16 * 64 * team.size() / (now() - start);
#else
    (void)team;
    return 0;
#endif
}

void some_rows(Team& team, const LinearKernels& kernels, const Memory& memory, int rounds,
               const std::string& only) {
    std::vector<Case> cases;
    for (auto [rows, cols] : {std::pair<int64_t, int64_t>{8960, 1536}, {1536, 8960}}) {
        for (auto& [name, view] : kinds(rows, cols)) {
            if (!is_wanted(name, only) || view.kind == LinearKind::bfloat16) continue;
            for (Precision precision : precisions) {
                for (int64_t tokens : {1, 2, 4, 8, 12, 16, 24, 32, 48}) {
                    std::string full = name + label_of(precision) + std::to_string(rows) + "x" +
                                       std::to_string(cols);
                    cases.push_back({full, view, precision, tokens});
                }
            }
        }
    }
    std::vector<Run> runs;
    for (auto& c : cases) runs.emplace_back(kernels, c, team.size());
    std::vector<double> reads, peaks;
    std::vector<std::vector<double>> speeds(cases.size()), ratios(cases.size());
    for (int round = 0; round < rounds; round++) {
        peaks.push_back(bare_tiles(team));
        for (size_t i = 0; i < cases.size(); i++) {
            double read = static_cast<double>(memory.size) / read_seconds(team, memory);
            auto [bytes, seconds] = walk(team, kernels, memory, cases[i], runs[i], 1 << 20);
            reads.push_back(read);
            speeds[i].push_back(bytes / seconds);
            ratios[i].push_back(bytes / seconds / read);
        }
    }
    double peak = median(peaks);
    std::printf("plain read %.1f GB/s, bare tiles %.1f TOP/s\n", median(reads) / 1e9, peak / 1e12);
    for (size_t i = 0; i < cases.size(); i++) {
        const Case& c = cases[i];
        if (c.tokens == 1) std::printf("%s\n", c.name.c_str());
        double weights = static_cast<double>(c.view.rows) * c.view.cols;
        double operations = median(speeds[i]) / linear_bytes(c.view) * 2 * c.tokens * weights;
        std::printf("  %2d rows %6.1f GB/s, best %5.1f, %5.1f %% of the read; %5.2f TOP/s",
                    static_cast<int>(c.tokens), median(speeds[i]) / 1e9,
                    *std::max_element(speeds[i].begin(), speeds[i].end()) / 1e9,
                    100 * median(ratios[i]), operations / 1e12);
        if (peak > 0) std::printf(", %4.1f %% of the tiles", 100 * operations / peak);
        std::printf("\n");
    }
}

void prefill(Team& team, const LinearKernels& kernels, const Memory& memory, int64_t tokens,
             int rounds, const std::string& only) {
    std::vector<Case> cases;
    for (auto [rows, cols] : {std::pair<int64_t, int64_t>{8960, 1536}, {1536, 8960}}) {
        for (auto& [name, view] : kinds(rows, cols)) {
            if (!is_wanted(name, only)) continue;
            for (Precision precision : precisions) {
                if (view.kind == LinearKind::bfloat16 && precision != Precision::int8) continue;
                cases.push_back({name + label_of(precision) + std::to_string(rows) + "x" + std::to_string(cols),
                                 view, precision, tokens});
            }
        }
    }
    std::vector<Run> runs;
    for (auto& c : cases) runs.emplace_back(kernels, c, team.size());
    std::vector<std::vector<double>> speeds(cases.size());
    for (int round = 0; round < rounds; round++) {
        for (size_t i = 0; i < cases.size(); i++) {
            auto [bytes, seconds] = walk(team, kernels, memory, cases[i], runs[i], 1);
            double operations = 2.0 * tokens * cases[i].view.rows * cases[i].view.cols;
            speeds[i].push_back(operations / seconds);
            (void)bytes;
        }
    }
    std::printf("prefill, %d tokens\n", static_cast<int>(tokens));
    for (size_t i = 0; i < cases.size(); i++) {
        std::printf("  %-32s %6.3f TOP/s\n", cases[i].name.c_str(), median(speeds[i]) / 1e12);
    }
}

}  // namespace

int main(int count, char** arguments) {
    std::string what = count > 1 ? arguments[1] : "all";
    std::string only = count > 2 ? arguments[2] : "";
    int threads = count > 3 ? std::atoi(arguments[3]) : 2;
    int isa = count > 4 ? std::atoi(arguments[4]) : -1;
    const LinearKernels* kernels =
        isa < 0 ? &best_linear_kernels() : linear_kernels(static_cast<Isa>(isa));
    if (!kernels) return 1;
    Team team(threads);
    Memory memory(size_t{1} << 29);
    std::printf("%s, %d threads\n", kernels->name, threads);
    if (what == "all" || what == "decode") decode(team, *kernels, memory, 1, 7, only);
    if (what == "all" || what == "decode8") decode(team, *kernels, memory, 8, 5, only);
    if (what == "rows") some_rows(team, *kernels, memory, 5, only);
    if (what == "all" || what == "prefill") prefill(team, *kernels, memory, 512, 5, only);
}
