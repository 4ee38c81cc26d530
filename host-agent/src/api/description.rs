//! What the description says that holds for every request: which problems there can be, and what a VM's name is.
//!
//! So the handlers name only the answers that are their own.

use serde_json::{Map, Value, json};
use utoipa::openapi::OpenApi;

/// What the names of VMs match (`wire::VmName`).
const VM_NAME: &str = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$";

/// What every request may be answered with, and when.
const OF_ALL: &[(&str, &str)] = &[
    ("401", "The Authorization header shows no token"),
    ("403", "Who asks may not do this"),
    ("500", "Something failed that has nothing to do with the request"),
];
const OF_PARAMETERS: &[(&str, &str)] = &[("400", "A part of the path or of the query is wrong")];
const OF_BODIES: &[(&str, &str)] = &[
    ("400", "The body is no JSON"),
    ("413", "The body is too long"),
    ("415", "The body is not said to be JSON"),
    ("422", "The body is JSON of another shape"),
];

/// The description as it is served.
pub(super) fn complete(description: &OpenApi) -> serde_json::Result<Value> {
    let mut description = serde_json::to_value(description)?;
    for path in objects(&mut description["paths"]) {
        for operation in objects(path) {
            complete_operation(operation);
        }
    }
    for (name, schema) in description["components"]["schemas"].as_object_mut().into_iter().flatten() {
        name_vms(schema);
        // What is sent to the agent is refused with fields that it does not know.
        if name.starts_with("New") {
            close(schema);
        }
    }
    Ok(description)
}

fn objects(value: &mut Value) -> impl Iterator<Item = &mut Value> {
    value.as_object_mut().into_iter().flat_map(|object| object.values_mut()).filter(|value| value.is_object())
}

fn complete_operation(operation: &mut Value) {
    let has_body = operation.get("requestBody").is_some();
    let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut);
    let has_parameters = parameters.as_ref().is_some_and(|parameters| !parameters.is_empty());
    for parameter in parameters.into_iter().flatten() {
        if parameter["name"] == "vm" || (parameter["name"] == "name" && parameter["in"] == "path") {
            parameter["schema"]["pattern"] = VM_NAME.into();
        }
    }
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    let bodies = if has_body { OF_BODIES } else { &[] };
    let parameters = if has_parameters { OF_PARAMETERS } else { &[] };
    for (status, when) in OF_ALL.iter().chain(bodies).chain(parameters) {
        responses.entry(*status).or_insert_with(|| json!({ "description": when }));
    }
    for (status, response) in responses {
        if status.starts_with(['4', '5']) {
            response["content"] =
                json!({ "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } });
        }
    }
}

/// Says of every `vm` or `name` of a new VM what it looks like.
fn name_vms(schema: &mut Value) {
    each_properties(schema, &mut |properties| {
        for (name, property) in properties.iter_mut() {
            if ["vm", "name"].contains(&name.as_str()) && property.get("maxLength") == Some(&json!(63)) {
                property["pattern"] = VM_NAME.into();
            }
        }
    });
}

fn close(schema: &mut Value) {
    if let Some(object) = schema.as_object_mut() {
        if object.contains_key("properties") {
            object.insert("additionalProperties".into(), false.into());
        }
        object.values_mut().for_each(close);
    } else if let Some(array) = schema.as_array_mut() {
        array.iter_mut().for_each(close);
    }
}

fn each_properties(schema: &mut Value, change: &mut impl FnMut(&mut Map<String, Value>)) {
    match schema {
        Value::Object(object) => {
            if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
                change(properties);
            }
            object.values_mut().for_each(|value| each_properties(value, change));
        }
        Value::Array(array) => array.iter_mut().for_each(|value| each_properties(value, change)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use utoipa::OpenApi as _;

    use super::*;
    use crate::status::{NewToken, NewVm, Problem};

    #[derive(utoipa::OpenApi)]
    #[openapi(paths(rename), components(schemas(NewVm, NewToken, Problem)))]
    struct Description;

    #[allow(dead_code, reason = "only described")]
    #[utoipa::path(put, path = "/vms/{name}", params(("name" = String, Path)), request_body = NewVm, responses(
        (status = 204),
        (status = 422, description = "Ours"),
    ))]
    fn rename() {}

    #[test]
    fn what_holds_for_all_is_said_once_and_what_is_ours_stays() {
        let described = complete(&Description::openapi()).unwrap();
        let put = &described["paths"]["/vms/{name}"]["put"];
        assert_eq!(put["parameters"][0]["schema"]["pattern"], VM_NAME);
        assert_eq!(put["responses"]["422"]["description"], "Ours");
        for status in ["400", "401", "403", "413", "415", "422", "500"] {
            let content = &put["responses"][status]["content"];
            assert!(content["application/problem+json"].is_object(), "{status}: {content}");
        }
        assert!(put["responses"]["204"].get("content").is_none());
        let vm = &described["components"]["schemas"]["NewVm"];
        assert_eq!(
            (&vm["additionalProperties"], &vm["properties"]["name"]["pattern"]),
            (&json!(false), &json!(VM_NAME))
        );
    }

    #[test]
    fn the_pattern_is_what_the_names_of_vms_are() {
        for (name, good) in [("a", true), ("a-b", true), ("-a", false), ("a-", false), ("A", false), ("", false)] {
            assert_eq!(name.parse::<wire::VmName>().is_ok(), good, "{name}");
        }
    }
}
