"""A stock tritonclient, in a process of its own: its stubs and ours have the same names. Prints JSON."""

import json
import queue
import sys

import numpy as np
import tritonclient.grpc as triton


def text_inputs(text: str, streaming: bool | None = None) -> list[triton.InferInput]:
    prompt = triton.InferInput("text_input", [1], "BYTES")
    prompt.set_data_from_numpy(np.array([text.encode()], dtype=np.object_))
    if streaming is None:
        return [prompt]
    flag = triton.InferInput("streaming", [1], "BOOL")
    flag.set_data_from_numpy(np.array([streaming]))
    return [prompt, flag]


def words(result: triton.InferResult, name: str) -> list[str]:
    return [element.decode() for element in result.as_numpy(name)]


def describe(client: triton.InferenceServerClient, model: str) -> dict:
    metadata = client.get_model_metadata(model, as_json=True)
    config = client.get_model_config(model, as_json=True)["config"]
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": [client.is_model_ready(model), client.is_model_ready("none")],
        "server": client.get_server_metadata().name,
        "inputs": {tensor["name"]: tensor["datatype"] for tensor in metadata["inputs"]},
        "outputs": [tensor["name"] for tensor in metadata["outputs"]],
        "decoupled": config["model_transaction_policy"]["decoupled"],
        "optional": [tensor["name"] for tensor in config["input"] if tensor.get("optional")],
        "index": client.get_model_repository_index(as_json=True)["models"],
    }


def infer(client: triton.InferenceServerClient, model: str, text: str) -> dict:
    result = client.infer(
        model, text_inputs(text), request_id="one", parameters={"max_tokens": 8, "temperature": 0.0}
    )
    response = result.get_response()
    return {
        "text": words(result, "text_output"),
        "reason": words(result, "finish_reason"),
        "id": response.id,
        "tokens": response.parameters["completion_tokens"].int64_param,
    }


def refused(client: triton.InferenceServerClient, model: str) -> str:
    try:
        client.infer(model, text_inputs("x"), parameters={"temperature": 9.0})
    except triton.InferenceServerException as error:
        return str(error)
    return ""


def stream(client: triton.InferenceServerClient, model: str, text: str) -> dict:
    """Two requests side by side and one that fails; pieces by request id."""
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for name, streaming in (("a", True), ("b", False)):
        client.async_stream_infer(
            model,
            text_inputs(text, streaming),
            request_id=name,
            parameters={"max_tokens": 8, "temperature": 0.0},
        )
    client.async_stream_infer(model, text_inputs(text, True), request_id="c", parameters={"n": 99})
    pieces: dict[str, list[str]] = {"a": [], "b": []}
    errors, num_open = [], 3
    while num_open:
        result, error = answers.get(timeout=60)
        if error is not None:
            errors.append(str(error))
            num_open -= 1
            continue
        response = result.get_response()
        pieces[response.id] += words(result, "text_output")
        num_open -= response.parameters["triton_final_response"].bool_param
    client.stop_stream()
    return {"pieces": pieces, "errors": errors}


def main() -> None:
    address, model, text = sys.argv[1:]
    with triton.InferenceServerClient(address) as client:
        found = describe(client, model) | {
            "infer": infer(client, model, text),
            "refused": refused(client, model),
        }
        print(json.dumps(found | {"stream": stream(client, model, text)}))


if __name__ == "__main__":
    main()
