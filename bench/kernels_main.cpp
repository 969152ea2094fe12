// SPDX-License-Identifier: Apache-2.0
// kernels_bench [OP] [ISA] [DTYPE] [ROWS] [THREADS] [SAMPLES] [SAMPLE_MS]: prints bench_kernels(). TODO(remove when `lorikeet bench kernels` exists)
#include <cstdio>
#include <cstdlib>

#include "lk/kernels/bench.h"

int main(int argc, char** argv) {
  lk::ThreadPool pool(argc > 5 ? std::atoi(argv[5]) : lk::default_num_threads());
  lk::KernelBenchOptions options;
  if (argc > 1) options.op = argv[1];
  if (argc > 2) {
    const auto isa = lk::parse_cpu_isa(argv[2]);
    if (!isa) return std::fprintf(stderr, "unknown instruction set %s\n", argv[2]), 2;
    options.isas = {*isa};
  }
  if (argc > 3 && argv[3][0] == 'f') options.dtypes = {lk::DType::kF32};
  if (argc > 4 && std::atoll(argv[4]) > 0) options.rows = {std::atoll(argv[4])};
  if (argc > 6) options.num_samples = std::atoi(argv[6]);
  if (argc > 7) options.sample_ms = std::atof(argv[7]);
  const lk::MachineLimits limits =
      options.isas.empty() ? lk::measure_machine_limits(pool) : lk::measure_machine_limits(pool, options.isas[0]);
  std::printf("limits: read %.1f GB/s  bf16 %.0f GFLOP/s  f32 %.0f GFLOP/s\n", limits.read_gb_s, limits.bf16_gflop_s,
              limits.f32_gflop_s);
  for (const lk::KernelBenchResult& r : lk::bench_kernels(options, pool))
    std::printf("%-18s %s %-12s rows %4ld k %5ld n %5ld rank %3ld adapters %3ld %10.1f us %6.1f GB/s %6.1f GFLOP/s %.3f  best %10.1f us %.3f\n",
                r.op.c_str(), to_string(r.dtype), to_string(r.isa), r.rows, r.k, r.n, r.rank, r.adapters, r.time_us,
                r.gb_s, r.gflop_s, r.fraction_of_limit, r.best_time_us, r.best_fraction);
}
