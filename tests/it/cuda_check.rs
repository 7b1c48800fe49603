//! `examples/cuda-check` goes all its way without a GPU, and says that CUDA does not
//! work where it does not.

#[path = "../../examples/cuda-check.rs"]
mod example;

use clap::Parser;
use example::{Args, check};
use onnx_prune::engine::{self, Device, EngineChoice, EngineOptions};

fn works(device: Device) -> bool {
    let options = EngineOptions {
        engine: EngineChoice::Ort,
        device,
        ..EngineOptions::default()
    };
    engine::choose(&options).is_ok()
}

fn args(more: &[&str]) -> Args {
    let all = ["cuda-check", "--samples", "96", "--threads", "1"];
    Args::try_parse_from(all.iter().chain(more)).expect("options")
}

#[test]
fn the_whole_way_on_the_cpu() {
    if !works(Device::Cpu) {
        eprintln!("skipped: no ONNX Runtime");
        return;
    }
    let mut out = String::new();
    check(&args(&["--device", "cpu"]), &mut out).unwrap_or_else(|e| panic!("{}\n{out}", e.chain()));
    for part in [
        "device     cpu",
        "says nothing about CUDA",
        " on CPUExecutionProvider",
        "calibration",
        "re-fitting",
        "units kept on the CPU",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
}

#[test]
fn without_a_gpu_it_says_so() {
    if works(Device::Cuda) {
        eprintln!("skipped: CUDA works here");
        return;
    }
    let mut out = String::new();
    let error = check(&args(&[]), &mut out).expect_err("no CUDA");
    assert_eq!(error.exit_code(), 4);
    assert!(
        error.chain().starts_with("CUDA does not work here: "),
        "{}",
        error.chain()
    );
}
