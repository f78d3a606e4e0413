// What `matmul` multiplies in: half precision, four products at a time; sums beyond those are f32.
enable f16;
alias Real = f16;
