//! Teach the analysis an operator of one's own.
//!
//!     cargo run --example operator_rule
//!
//! A rule says how the axes of a node's inputs and outputs relate; which weights must
//! shrink together follows from that. An operator without a rule is safe, but
//! everything it touches keeps its size. (A rule for an operator of ONNX itself or of
//! ONNX Runtime belongs into `src/axes/rules`: please send it.)

use std::path::Path;

use onnx_prune::axes::{self, Analysis, Kind, Op, OwnRule};
use onnx_prune::onnx::proto::ModelProto;
use onnx_prune::{Result, graph, onnx};

/// `com.example::ScaledGelu(x, scale)`: entry by entry, `scale` is broadcast.
///
/// `broadcast` makes the axes of both operands the same, right-aligned, except for
/// axes of size 1; the result has the dimensions of the output. `None`, where a rank
/// is unknown, means "not followed", and freezes what the node touches.
fn scaled_gelu(op: &mut Op) -> Option<()> {
    let dims = op.broadcast(&[0, 1])?;
    op.set(0, dims);
    Some(())
}

static RULES: [OwnRule; 1] = [OwnRule {
    domain: "com.example",
    op: "ScaledGelu",
    rule: scaled_gelu,
}];

fn main() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/digits-vit/model.onnx");
    let model = with_own_operator(onnx::load(&path)?.proto);
    let graph = graph::build(&model)?;

    let without = axes::analyse(&graph, axes::AnalysisOptions::default());
    println!("without a rule: {}", told(&without));
    for (operator, count) in &without.unsupported {
        println!("  {operator} ({count} nodes) has no rule");
    }

    // `Options::axes` of a whole run takes the rules the same way.
    let options = axes::AnalysisOptions {
        own_rules: &RULES,
        ..axes::AnalysisOptions::default()
    };
    let with = axes::analyse(&graph, options);
    println!("with the rule:  {}", told(&with));
    assert!(with.unsupported.is_empty());
    Ok(())
}

fn told(analysis: &Analysis) -> String {
    let count = |kind: Kind| analysis.groups.iter().filter(|g| g.kind == kind).count();
    format!(
        "{} groups of heads, {} of neurons",
        count(Kind::Heads),
        count(Kind::Neurons)
    )
}

/// The model with the activation of its feed-forward blocks replaced.
fn with_own_operator(mut model: ModelProto) -> ModelProto {
    if let Some(graph) = &mut model.graph {
        for node in &mut graph.node {
            if matches!(node.op_type(), "Gelu" | "Erf") {
                // The scale is any value that is there: only its axes matter here.
                let scale = node.input[0].clone();
                node.input.push(scale);
                node.op_type = Some("ScaledGelu".into());
                node.domain = Some("com.example".into());
            }
        }
    }
    model
}
