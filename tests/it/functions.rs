//! Local functions become ordinary nodes; unsound models are refused by name.

use crate::models::*;
use attribute_proto::AttributeType;
use onnx_prune::onnx::proto::*;
use onnx_prune::onnx::*;

fn function(name: &str, input: &[&str], output: &[&str], node: Vec<NodeProto>) -> FunctionProto {
    FunctionProto {
        name: Some(name.into()),
        domain: Some("local".into()),
        input: input.iter().map(|s| s.to_string()).collect(),
        output: output.iter().map(|s| s.to_string()).collect(),
        node,
        opset_import: vec![opset("", 18), opset("local", 1)],
        ..FunctionProto::default()
    }
}

fn with_functions(graph: GraphProto, functions: Vec<FunctionProto>) -> ModelProto {
    ModelProto {
        functions,
        opset_import: vec![opset("", 18), opset("local", 1)],
        ..model(graph)
    }
}

fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto {
        r#type: Some(AttributeType::Float as i32),
        f: Some(f),
        ..attribute(name)
    }
}

/// An attribute that takes the value of the call's attribute `of`.
fn reference(name: &str, of: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto {
        r#type: Some(kind as i32),
        ref_attr_name: Some(of.into()),
        ..attribute(name)
    }
}

fn with_attributes(node: NodeProto, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto { attribute, ..node }
}

/// `Op(inputs) -> outputs` for every node, subgraphs indented.
fn listing_of(graph: &GraphProto) -> Vec<String> {
    let mut lines = Vec::new();
    for node in &graph.node {
        let attributes: Vec<_> = node
            .attribute
            .iter()
            .filter(|a| a.g.is_none())
            .map(|a| format!(" {}={}", a.name(), a.f()))
            .collect();
        lines.push(format!(
            "{}({}) -> {}{}",
            node.op_type(),
            node.input.join(", "),
            node.output.join(", "),
            attributes.concat()
        ));
        for inner in node.attribute.iter().filter_map(|a| a.g.as_ref()) {
            lines.extend(listing_of(inner).into_iter().map(|line| format!("  {line}")));
        }
    }
    lines
}

fn inlined(model: &ModelProto) -> GraphProto {
    validate(model).unwrap_or_else(|e| panic!("{}", e.chain()));
    let out = inline_functions(model).unwrap_or_else(|e| panic!("{}", e.chain()));
    validate(&out).unwrap_or_else(|e| panic!("{}", e.chain()));
    assert!(out.functions.is_empty());
    out.graph.unwrap()
}

fn inline_error(model: &ModelProto) -> String {
    inline_functions(model).unwrap_err().chain()
}

#[test]
fn without_functions_nothing_changes() {
    let model = layers(2, 1);
    assert_eq!(inline_functions(&model).unwrap(), model);
}

#[test]
fn names_become_unique_and_nested_calls_are_inlined() {
    // Two(x) = Half(Half(x)), Half(x) = { t = Mul(x, x); Sqrt(t) }.
    let half = function(
        "Half",
        &["x"],
        &["y"],
        vec![
            node("Mul", "mul", &["x", "x"], &["t"]),
            node("Sqrt", "", &["t"], &["y"]),
        ],
    );
    let two = function(
        "Two",
        &["x"],
        &["y"],
        vec![
            call("local", "Half", "a", &["x"], &["t"]),
            call("local", "Half", "b", &["t"], &["y"]),
        ],
    );
    // The name that the first inner value would get is taken.
    let graph = graph(
        &["x"],
        &["y"],
        vec![
            node("Neg", "neg", &["x"], &["call/a/t"]),
            call("local", "Two", "call", &["call/a/t"], &["y"]),
        ],
    );
    let out = inlined(&with_functions(graph, vec![two, half]));
    assert_eq!(
        listing_of(&out),
        [
            "Neg(x) -> call/a/t",
            "Mul(call/a/t, call/a/t) -> call/a/t_1",
            "Sqrt(call/a/t_1) -> call/t",
            "Mul(call/t, call/t) -> call/b/t",
            "Sqrt(call/b/t) -> y",
        ]
    );
    let names: Vec<_> = out.node.iter().map(|node| node.name()).collect();
    assert_eq!(
        names,
        ["neg", "call/a/mul", "call/a/Sqrt", "call/b/mul", "call/b/Sqrt"]
    );
}

#[test]
fn nameless_calls_are_told_apart() {
    let f = function(
        "F",
        &["x"],
        &["y"],
        vec![node("Neg", "n", &["x"], &["t"]), node("Abs", "a", &["t"], &["y"])],
    );
    let g = graph(
        &["x"],
        &["y"],
        vec![
            call("local", "F", "", &["x"], &["m"]),
            call("local", "F", "", &["m"], &["y"]),
        ],
    );
    let out = inlined(&with_functions(g, vec![f]));
    let names: Vec<_> = out.node.iter().map(|node| node.name()).collect();
    assert_eq!(names, ["F/n", "F/a", "F_1/n", "F_1/a"]);
    assert_eq!(out.node[3].input, ["F_1/t"]);
}

#[test]
fn attributes_come_from_the_call_or_the_defaults() {
    let leaky = function(
        "Leaky",
        &["x"],
        &["y"],
        vec![with_attributes(
            node("LeakyRelu", "n", &["x"], &["y"]),
            vec![reference("alpha", "slope", AttributeType::Float)],
        )],
    );
    let with_default = FunctionProto {
        attribute_proto: vec![float("slope", 0.25)],
        ..leaky.clone()
    };
    let outer = FunctionProto {
        attribute: vec!["s".into()],
        ..function(
            "Outer",
            &["x"],
            &["y"],
            vec![with_attributes(
                call("local", "Leaky", "l", &["x"], &["y"]),
                vec![reference("slope", "s", AttributeType::Float)],
            )],
        )
    };
    let run = |op: &str, given: Vec<AttributeProto>, functions: &[&FunctionProto]| {
        let node = with_attributes(call("local", op, "c", &["x"], &["y"]), given);
        listing_of(&inlined(&with_functions(
            graph(&["x"], &["y"], vec![node]),
            functions.iter().copied().cloned().collect(),
        )))
    };
    assert_eq!(
        run("Leaky", vec![float("slope", 0.5)], &[&leaky]),
        ["LeakyRelu(x) -> y alpha=0.5"]
    );
    assert_eq!(run("Leaky", vec![], &[&leaky]), ["LeakyRelu(x) -> y"]);
    assert_eq!(
        run("Leaky", vec![], &[&with_default]),
        ["LeakyRelu(x) -> y alpha=0.25"]
    );
    assert_eq!(
        run("Leaky", vec![float("slope", 2.0)], &[&with_default]),
        ["LeakyRelu(x) -> y alpha=2"]
    );
    // Through two levels; what the outer call omits is the inner one's default.
    let both = [&outer, &with_default];
    assert_eq!(
        run("Outer", vec![float("s", 3.0)], &both),
        ["LeakyRelu(x) -> y alpha=3"]
    );
    assert_eq!(run("Outer", vec![], &both), ["LeakyRelu(x) -> y alpha=0.25"]);

    let wrong = AttributeProto {
        r#type: Some(AttributeType::Int as i32),
        i: Some(1),
        ..attribute("slope")
    };
    let node = with_attributes(call("local", "Leaky", "c", &["x"], &["y"]), vec![wrong]);
    let error = inline_error(&with_functions(graph(&["x"], &["y"], vec![node]), vec![leaky]));
    assert!(
        error.contains("is FLOAT") && error.contains("is INT") && error.contains("node #0 \"c\""),
        "{error}"
    );
}

#[test]
fn subgraphs_inside_and_around_are_renamed() {
    let branch = |name: &str, from: &str| graph(&[], &[name], vec![node("Neg", "", &[from], &[name])]);
    let body = with_attributes(
        node("If", "if", &["c"], &["y"]),
        vec![
            subgraph("then_branch", branch("r", "t")),
            subgraph("else_branch", branch("r", "x")),
        ],
    );
    let choose = function(
        "Choose",
        &["c", "x"],
        &["y"],
        vec![node("Abs", "abs", &["x"], &["t"]), body],
    );
    // Called from a branch of the main graph, which has a value "r" of its own.
    let inner = graph(
        &[],
        &["z"],
        vec![
            node("Abs", "", &["v"], &["r"]),
            call("local", "Choose", "call", &["c", "r"], &["z"]),
        ],
    );
    let outer = with_attributes(
        node("If", "outer", &["c"], &["y"]),
        vec![
            subgraph("then_branch", inner),
            subgraph("else_branch", branch("w", "v")),
        ],
    );
    let out = inlined(&with_functions(
        graph(&["c", "v"], &["y"], vec![outer]),
        vec![choose],
    ));
    assert_eq!(
        listing_of(&out),
        [
            "If(c) -> y",
            "  Abs(v) -> r",
            "  Abs(r) -> call/t",
            "  If(c) -> z",
            "    Neg(call/t) -> call/r",
            "    Neg(r) -> call/r_1",
            "  Neg(v) -> w",
        ]
    );
    let then = out.node[0].attribute[0].g.as_ref().unwrap();
    assert_eq!(
        then.node[2].attribute[0].g.as_ref().unwrap().output[0].name(),
        "call/r"
    );
}

#[test]
fn optional_arguments_and_passed_through_values() {
    // Outputs: a node's, an input, the first again; one is not asked for.
    let f = function(
        "F",
        &["a", "b"],
        &["y", "a", "y", "unused"],
        vec![
            node("Clip", "clip", &["a", "", "b"], &["y"]),
            node("Neg", "neg", &["a"], &["unused"]),
        ],
    );
    let g = graph(
        &["x"],
        &["p", "q", "r"],
        vec![call("local", "F", "c", &["x"], &["p", "q", "r"])],
    );
    let model = with_functions(g, vec![f]);
    let out = inline_functions(&model).unwrap().graph.unwrap();
    assert_eq!(
        listing_of(&out),
        [
            "Clip(x, , ) -> p",
            "Neg(x) -> c/unused",
            "Identity(x) -> q",
            "Identity(p) -> r"
        ]
    );
    let omitted = function("F", &["a", "b"], &["b"], vec![]);
    let g = graph(&["x"], &["y"], vec![call("local", "F", "c", &["x"], &["y"])]);
    assert!(inline_error(&with_functions(g, vec![omitted])).contains("omits"));
}

#[test]
fn overloads_opsets_and_value_info() {
    let one = FunctionProto {
        overload: Some("one".into()),
        value_info: vec![value("t"), value("x"), value("y")],
        opset_import: vec![
            opset("ai.onnx", 18),
            opset("com.microsoft", 1),
            opset("unused", 9),
        ],
        ..function(
            "F",
            &["x"],
            &["y"],
            vec![
                call("com.microsoft", "Gelu", "g", &["x"], &["t"]),
                node("Neg", "n", &["t"], &["y"]),
            ],
        )
    };
    let two = FunctionProto {
        overload: Some("two".into()),
        ..function("F", &["x"], &["y"], vec![node("Abs", "a", &["x"], &["y"])])
    };
    let overloaded = |overload: &str, from: &str, to: &str| NodeProto {
        overload: Some(overload.into()),
        ..call("local", "F", overload, &[from], &[to])
    };
    let g = graph(
        &["x"],
        &["y"],
        vec![overloaded("one", "x", "m"), overloaded("two", "m", "y")],
    );
    let model = with_functions(g, vec![one.clone(), two]);
    let out = inline_functions(&model).unwrap();
    validate(&out).unwrap();
    let domains: Vec<_> = out
        .opset_import
        .iter()
        .map(|o| (o.domain(), o.version()))
        .collect();
    assert_eq!(domains, [("", 18), ("local", 1), ("com.microsoft", 1)]);
    let graph = out.graph.unwrap();
    assert_eq!(
        listing_of(&graph),
        ["Gelu(x) -> one/t", "Neg(one/t) -> m", "Abs(m) -> y"]
    );
    // The input is declared already.
    let infos: Vec<_> = graph.value_info.iter().map(|info| info.name()).collect();
    assert_eq!(infos, ["one/t", "m"]);

    let mut conflict = model.clone();
    conflict.functions[0].opset_import[0].version = Some(13);
    let error = inline_error(&conflict);
    assert!(
        error.contains("version 13") && error.contains("18") && error.contains("local::F:one"),
        "{error}"
    );
    let mut missing = model;
    missing.functions[0].opset_import.truncate(1);
    assert!(inline_error(&missing).contains("without importing"));
}

#[test]
fn hostile_functions_are_errors() {
    let main = || graph(&["x"], &["y"], vec![call("local", "F0", "c", &["x"], &["y"])]);
    let calls = |name: &str, of: &str, times: usize| {
        let value = |i: usize| {
            if i == 0 { "x".to_owned() } else { format!("v{i}") }
        };
        let nodes = (0..times)
            .map(|i| call("local", of, "", &[&value(i)], &[&value(i + 1)]))
            .collect();
        function(name, &["x"], &[&value(times)], nodes)
    };
    // A cycle of calls.
    let error = inline_error(&with_functions(
        main(),
        vec![calls("F0", "F1", 1), calls("F1", "F0", 1)],
    ));
    assert!(error.contains("calls itself"), "{error}");
    // Doubling at every level.
    let mut doubling: Vec<_> = (0..40)
        .map(|i| calls(&format!("F{i}"), &format!("F{}", i + 1), 2))
        .collect();
    doubling.push(function(
        "F40",
        &["x"],
        &["y"],
        vec![node("Neg", "", &["x"], &["y"])],
    ));
    assert!(inline_error(&with_functions(main(), doubling.clone())).contains("expand to more"));
    // The same with an empty body at the end: nothing is made, and yet.
    doubling[40] = function("F40", &["x"], &["x"], vec![]);
    assert!(inline_error(&with_functions(main(), doubling)).contains("expand to more"));
    // A chain longer than the stack.
    let mut chain: Vec<_> = (0..100_000)
        .map(|i| calls(&format!("F{i}"), &format!("F{}", i + 1), 1))
        .collect();
    chain.push(function(
        "F100000",
        &["x"],
        &["y"],
        vec![node("Neg", "", &["x"], &["y"])],
    ));
    assert!(inline_error(&with_functions(main(), chain)).contains("deep"));
    // Subgraphs that only the expansion makes too deep.
    let nest = |name: &str, of: &str| {
        let inner = graph(&[], &["r"], vec![call("local", of, "", &["x"], &["r"])]);
        function(
            name,
            &["x"],
            &["y"],
            vec![with_attributes(
                node("If", "", &["x"], &["y"]),
                vec![subgraph("then_branch", inner)],
            )],
        )
    };
    let mut nested: Vec<_> = (0..40)
        .map(|i| nest(&format!("F{i}"), &format!("F{}", i + 1)))
        .collect();
    nested.push(function(
        "F40",
        &["x"],
        &["y"],
        vec![node("Neg", "", &["x"], &["y"])],
    ));
    assert!(inline_error(&with_functions(main(), nested)).contains("deep"));

    let neg = |input: &[&str], output: &[&str], from: &str, to: &str| {
        function("F0", input, output, vec![node("Neg", "n", &[from], &[to])])
    };
    for (f, expected) in [
        (neg(&["x", "x"], &["y"], "x", "y"), "two of its inputs"),
        (
            neg(&["x"], &["y"], "x", "z"),
            "nothing in it produces its output \"y\"",
        ),
        (
            neg(&["x"], &["y"], "w", "y"),
            "nothing in the function produces \"w\"",
        ),
        (neg(&["x"], &["x"], "x", "x"), "produced twice"),
        (neg(&[], &["y"], "x", "y"), "0 inputs, the call has 1"),
        (neg(&["x"], &[], "x", "y"), "0 outputs, the call has 1"),
    ] {
        let error = inline_error(&with_functions(main(), vec![f]));
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("node #0 \"c\" (local::F0)"), "{error}");
    }
    let twice = vec![calls("F0", "F1", 1), calls("F0", "F1", 1)];
    assert!(inline_error(&with_functions(main(), twice)).contains("two functions"));
    let dangling = with_attributes(
        call("local", "F0", "c", &["x"], &["y"]),
        vec![reference("a", "b", AttributeType::Float)],
    );
    let error = inline_error(&with_functions(
        graph(&["x"], &["y"], vec![dangling]),
        vec![neg(&["x"], &["y"], "x", "y")],
    ));
    assert!(error.contains("none around it"), "{error}");
}

#[test]
fn unsound_graphs_are_refused_by_name() {
    let error = |input: &[&str], output: &[&str], nodes: Vec<NodeProto>| {
        validate(&model(graph(input, output, nodes))).unwrap_err().chain()
    };
    let neg = |name: &str, from: &str, to: &str| node("Neg", name, &[from], &[to]);

    let found = error(&["x"], &["y"], vec![neg("a", "x", "y"), neg("b", "w", "z")]);
    assert!(
        found.contains("node #1 \"b\" (Neg)") && found.contains("nothing produces its input \"w\""),
        "{found}"
    );
    let found = error(&["x"], &["y"], vec![neg("a", "x", "y"), neg("b", "x", "y")]);
    assert!(
        found.contains("node #1 \"b\"") && found.contains("made by node #0 \"a\""),
        "{found}"
    );
    assert!(error(&["x"], &["x"], vec![neg("a", "x", "x")]).contains("made by a graph input"));
    assert!(error(&["x", "x"], &["x"], vec![]).contains("two graph inputs"));
    assert!(error(&["x"], &["y"], vec![]).contains("graph output \"y\""));
    assert!(error(&["x"], &["y"], vec![node("", "a", &["x"], &["y"])]).contains("no operator"));

    let cycle = vec![
        neg("first", "x", "a"),
        node("Add", "p", &["a", "c"], &["b"]),
        neg("q", "b", "c"),
        neg("behind", "c", "y"),
    ];
    let found = error(&["x"], &["y"], cycle);
    assert!(
        found.contains("cycle") && found.contains("\"p\"") && found.contains("\"q\""),
        "{found}"
    );
    assert!(!found.contains("first") && !found.contains("behind"), "{found}");
    assert!(error(&["x"], &["y"], vec![neg("self", "y", "y")]).contains("cycle"));
    // Through what a subgraph captures.
    let captures = |from: &str| subgraph("body", graph(&[], &["i"], vec![neg("in", from, "i")]));
    let found = error(
        &["x"],
        &["y"],
        vec![
            with_attributes(node("If", "if", &["x"], &["a"]), vec![captures("y")]),
            neg("n", "a", "y"),
        ],
    );
    assert!(found.contains("cycle") && found.contains("\"if\""), "{found}");
    let found = error(
        &["x"],
        &["a"],
        vec![with_attributes(
            node("If", "if", &["x"], &["a"]),
            vec![captures("w")],
        )],
    );
    assert!(
        found.contains("\"if\"")
            && found.contains("attribute \"body\"")
            && found.contains("\"in\"")
            && found.contains("\"w\""),
        "{found}"
    );

    // Out of order is fine, also for what is captured.
    let shuffled = vec![
        neg("b", "a", "y"),
        with_attributes(node("If", "if", &["x"], &["a"]), vec![captures("z")]),
        neg("z", "x", "z"),
    ];
    validate(&model(graph(&["x"], &["y"], shuffled))).unwrap();

    // Too deep.
    let mut inner = graph(&[], &["i"], vec![neg("n", "x", "i")]);
    for _ in 0..40 {
        inner = graph(
            &[],
            &["i"],
            vec![with_attributes(
                node("If", "if", &["x"], &["i"]),
                vec![subgraph("then_branch", inner)],
            )],
        );
    }
    inner.input = vec![value("x")];
    assert!(validate(&model(inner)).unwrap_err().chain().contains("33 deep"));

    // Sizes.
    let mut absurd = model(graph(&["x"], &["x"], vec![]));
    for (size, fine) in [
        (-1, true),
        (0, true),
        (1 << 40, true),
        (-2, false),
        (i64::MAX, false),
        (1 << 41, false),
    ] {
        let found = absurd.graph.as_mut().unwrap();
        if let Some(type_proto::Value::TensorType(t)) = &mut found.input[0].r#type.as_mut().unwrap().value {
            t.shape.as_mut().unwrap().dim[0].value =
                Some(tensor_shape_proto::dimension::Value::DimValue(size));
        }
        assert_eq!(validate(&absurd).is_ok(), fine, "{size}");
    }
    let mut short = layers(1, 1);
    short.graph.as_mut().unwrap().initializer[1].dims[0] += 1;
    let found = validate(&short).unwrap_err().chain();
    assert!(
        found.contains("initializer \"down0\"") && found.contains("bytes"),
        "{found}"
    );
    assert!(validate(&ModelProto::default()).is_err());
}

#[test]
fn a_long_chain_is_no_deep_recursion() {
    let count = 200_000;
    let nodes = (0..count)
        .rev()
        .map(|i| node("Neg", "", &[&format!("v{i}")], &[&format!("v{}", i + 1)]))
        .collect();
    validate(&model(graph(&["v0"], &[&format!("v{count}")], nodes))).unwrap();
}
